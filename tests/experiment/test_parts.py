from pathlib import Path

import pytest
import torch
from helpers import composed
from lightning.pytorch.callbacks import ModelCheckpoint

from unet_diffusion.data.sources import FashionMNISTMini
from unet_diffusion.errors import UserError
from unet_diffusion.experiment.build import build_datamodule
from unet_diffusion.experiment.parts import construct
from unet_diffusion.experiment.schema import node_of


def test_nested_parts_and_partial_optimizers_are_constructed():
    assert isinstance(build_datamodule(composed()).source, FashionMNISTMini)
    optimizer = construct(composed("optimizer.lr=0.5").optimizer, "optimizer")
    assert optimizer([torch.nn.Parameter(torch.ones(1))]).defaults["lr"] == 0.5


def test_further_arguments_are_passed_to_the_class(tmp_path: Path):
    part = composed().callbacks["checkpoint"]
    checkpoint = construct(part, "callbacks.checkpoint", dirpath=tmp_path)
    assert isinstance(checkpoint, ModelCheckpoint)
    assert checkpoint.dirpath == str(tmp_path)


@pytest.mark.parametrize(
    ("overrides", "key", "message"),
    [
        ("noise.percent=50", "noise", r"noise\.percent=50: expected .*Did you mean 0\.5\?"),
        ("noise.percent=abc", "noise", r"noise\.percent=abc: should be a valid number\."),
        ("noise.percent=true", "noise", r"noise\.percent=True: should be a valid number\."),
        ("noise.percent=null", "noise", r"noise\.percent=None: should be a valid number\."),
        ("noise.percent=nan", "noise", r"noise\.percent=nan: should be a finite number\."),
        ("model.image_size=18", "model", r"model\.image_size=18: .*The next size is 20\."),
        ("model.channels=[16,a]", "model", r"model\.channels\.1=a: should be a valid integer"),
        ("+model.depth=3", "model", r"model\.depth: unknown key\. LessonUNet has channels, "),
        ("+data.source.x=3", "data", r"data\.source\.x: unknown key\. FashionMNISTMini has no"),
        ("+model.key=3", "model", r"model\.key: unknown key\."),
        ("+sampler.eta=1 sampler=heun", "sampler", r"sampler\.eta: .* key of sampler=ancestral,"),
        ("+optimizer.amsgrad=no", "optimizer", r"optimizer\.amsgrad=no: should be a valid bool"),
        ("model.dense_bottleneck=no", "model", r"model\.dense_bottleneck=no: should be a valid"),
        ("data.flip=2", "data", r"data\.flip=2: should be a valid boolean\."),
        ("data.split_seed=-1", "data", r"data\.split_seed=-1: should be greater"),
        ("+optimizer.x=3", "optimizer", r"optimizer\.x: unknown key\. AdamW has params, lr"),
        ("data.source._target_=a.B", "data", r"data\.source\._target_=a\.B: no such class\."),
        ("model._target_=os", "model", r"model\._target_=os: no such class\."),
        ("lr_schedule.warmup=2", "lr_schedule", r"lr_schedule\.warmup=2: should be less than"),
        ("callbacks.previews.num_images=0", "callbacks.previews", r"callbacks.*num_images=0: "),
        ("callbacks.previews.guidance_scale=0.5", "callbacks.previews", r"callbacks.*scale=0\.5: "),
        ("optimizer=muon +optimizer.eps=0", "optimizer", r"optimizer\.eps: unknown key\. Muon"),
        ("model.image_channels=2", "model", r"model\.image_channels=2: should be 1 or 3\."),
        ("sampler=heun sampler.time_grid=log", "sampler", r"sampler\.time_grid=log: should be"),
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
