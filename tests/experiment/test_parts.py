from pathlib import Path

import pytest
import torch
from helpers import composed

from unet_diffusion.data.sources import FashionMNISTMini
from unet_diffusion.errors import UserError
from unet_diffusion.experiment.build import build_datamodule
from unet_diffusion.experiment.parts import construct
from unet_diffusion.experiment.schema import node_of


def test_nested_parts_partial_optimizers_and_further_arguments_are_constructed(tmp_path: Path):
    assert isinstance(build_datamodule(composed()).source, FashionMNISTMini)
    optimizer = construct(composed("optimizer.lr=0.5").optimizer, "optimizer")
    assert optimizer([torch.nn.Parameter(torch.ones(1))]).defaults["lr"] == 0.5
    part = composed().callbacks["checkpoint"]
    checkpoint = construct(part, "callbacks.checkpoint", dirpath=tmp_path)
    assert checkpoint.dirpath == str(tmp_path)


@pytest.mark.parametrize(
    ("overrides", "key", "message"),
    [
        ("noise.percent=50", "noise", r"noise\.percent=50: expected .*Did you mean 0\.5\?"),
        ("noise.percent=abc", "noise", r"noise\.percent=abc: should be a valid number\."),
        ("noise.percent=nan", "noise", r"noise\.percent=nan: should be a finite number\."),
        ("model.channels=[16,a]", "model", r"model\.channels\.1=a: should be a valid integer"),
        ("+data.source.x=3", "data", r"data\.source\.x: unknown key\. FashionMNISTMini has no"),
        ("+optimizer.amsgrad=no", "optimizer", r"optimizer\.amsgrad=no: should be a valid bool"),
        ("+optimizer.x=3", "optimizer", r"optimizer\.x: unknown key\. AdamW has params, lr"),
        ("data.source._target_=a.B", "data", r"data\.source\._target_=a\.B: no such class\."),
        ("callbacks.previews.num_images=0", "callbacks.previews", r"callbacks.*num_images=0: "),
        ("callbacks.previews.guidance_scale=0.5", "callbacks.previews", r"callbacks.*scale=0\.5: "),
        ("optimizer=muon +optimizer.eps=0", "optimizer", r"optimizer\.eps: unknown key\. Muon"),
        ("model.image_channels=2", "model", r"model\.image_channels=2: should be 1 or 3\."),
        ("sampler.clip=hard", "sampler", r"sampler\.clip=hard: should be 'none', 'static' or 'dyn"),
        ("ema=default ema.decay=1", "ema", r"ema\.decay=1: should be less than 1"),
    ],
)  # fmt: skip
def test_invalid_argument_is_named_by_its_full_key(overrides: str, key: str, message: str):
    part = node_of(composed(*overrides.split()).model_dump(), key)
    with pytest.raises(UserError, match=f"^{message}"):
        construct(part, key)


def test_bugs_of_a_class_are_no_user_errors(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(FashionMNISTMini, "__init__", lambda self: len(3), raising=False)
    with pytest.raises(TypeError, match="has no len"):
        construct(composed().data, "data")
