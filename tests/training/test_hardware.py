import pytest
import torch
from omegaconf import OmegaConf

from unet_diffusion.errors import UserError
from unet_diffusion.training.hardware import check_hardware, pick_device

NO_GPU = not torch.cuda.is_available() and not torch.backends.mps.is_available()


def asked(accelerator: str, precision: str = "32-true") -> None:
    check_hardware(OmegaConf.create({"accelerator": accelerator, "precision": precision}))


def test_what_every_machine_can_do():
    asked("auto")
    asked("cpu", "bf16-mixed")
    assert pick_device("cpu") == torch.device("cpu")


@pytest.mark.skipif(not NO_GPU, reason="there is a GPU here")
@pytest.mark.parametrize(
    ("accelerator", "precision", "said"),
    [
        ("gpu", "32-true", "accelerator=gpu was asked for"),
        ("mps", "32-true", "accelerator=mps was asked for"),
        ("auto", "16-mixed", "precision=fp16 needs a GPU"),
    ],
)
def test_what_is_not_there_is_refused(accelerator: str, precision: str, said: str):
    with pytest.raises(UserError, match=said):
        asked(accelerator, precision)


def test_bf16_on_a_gpu_without_it_is_refused(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda: False)
    with pytest.raises(UserError, match="precision=bf16 is not supported by this GPU"):
        asked("gpu", "bf16-mixed")


@pytest.mark.parametrize("name", ["nonsense", "cuda:99"])
def test_unknown_devices_are_refused(name: str):
    with pytest.raises(UserError, match=f"device={name} cannot be used here"):
        pick_device(name)


def test_unknown_accelerators_are_refused():
    with pytest.raises(UserError, match=r"trainer\.accelerator=toaster is not known"):
        asked("toaster")
