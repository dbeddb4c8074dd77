import pytest
from helpers import built, composed

from unet_diffusion.errors import UserError
from unet_diffusion.experiment.build import build_denoiser, check_config
from unet_diffusion.models import UNet


def test_denoiser_has_the_parts_of_the_config():
    overrides = ("model=unet", "model.channels=[16]", "schedule=cosine", "prediction=velocity")
    denoiser = build_denoiser(composed(*overrides), num_classes=0)
    assert isinstance(denoiser.net, UNet)
    names = [type(part).__name__ for part in (denoiser.schedule, denoiser.prediction)]
    assert names == ["CosineSchedule", "VelocityPrediction"]


def test_number_of_classes_is_that_of_the_data():
    experiment = built("model=unet", "model.channels=[16]", "model.num_classes='${num_classes}'")
    assert experiment.denoiser.net.num_classes == len(experiment.datamodule.class_names) == 10


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        ("prediction=epsilon", r"prediction=epsilon: .* Use schedule=ddpm"),
        ("data.image_size=18", r"model\.image_size=18: .*The next size is 20\."),
        ("model=unet data.image_size=18", r"data\.image_size=18: .*The next size is 20\."),
        ("model=unet data.image_size=[16,18]", r"data\.image_size=\[16, 18\]: .* is \[16, 20\]\."),
        ("+optimizer.x=3", r"optimizer\.x: unknown key\."),
    ],
)
def test_parts_that_do_not_fit_together_raise(overrides: str, message: str):
    with pytest.raises(UserError, match=f"^{message}"):
        built(*overrides.split())


def test_check_config_finds_invalid_parts_without_the_data():
    check_config(composed("data=image_folder", "data.root=missing", "model=unet"))
    with pytest.raises(UserError, match=r"^optimizer\.x: unknown key"):
        check_config(composed("data=image_folder", "+optimizer.x=3"))
