"""What is done to be fast changes nothing but the time."""

import csv
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from helpers import weights

from unet_diffusion.data.datamodule import ImageDataModule
from unet_diffusion.training.speed import Speed

Trained = Callable[..., Path]
CPU = torch.device("cpu")
PLAIN = ("speed.channels_last=false", "speed.compile=false", "speed.images_on_device=false")
TWELVE = ("optimizer.lr=1e-4", "trainer.max_steps=12", "trainer.log_every_n_steps=1", "model.channels=[8,16,32]")
UNET = ("experiment=04_flow", "model.channels=[16,32]", "precision=fp32", "data.batch_size=32")


def losses(run: Path) -> list[float]:
    with (run / "metrics.csv").open() as stream:
        return [float(row["train/loss"]) for row in csv.DictReader(stream) if row["train/loss"]]


@pytest.mark.parametrize("typed", [(), (*UNET, "trainer.max_steps=8")])
def test_the_fast_path_gives_the_losses_of_the_plain_one(trained: Trained, typed: tuple[str, ...]):
    fast, plain = (losses(trained(*TWELVE, *typed, *how)) for how in ((), PLAIN))
    assert len(fast) in (8, 12)
    assert fast == pytest.approx(plain, rel=2e-3)
    assert fast[0] == pytest.approx(plain[0], rel=1e-5)


def test_the_fast_path_is_the_same_to_the_bit_every_time(trained: Trained):
    first, second = (weights(trained(*TWELVE)) for _ in range(2))
    assert all(torch.equal(first[name], second[name]) for name in first)


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("g++") is None, reason="needs a compiler")
def test_compiled_training_gives_the_same_losses_and_weights_with_the_same_names(trained: Trained):
    compiled, eager = (trained(*TWELVE, f"speed.compile={how}") for how in ("true", "false"))
    assert losses(compiled) == pytest.approx(losses(eager), rel=2e-3)
    assert weights(compiled).keys() == weights(eager).keys()


def test_images_on_the_device_are_the_same_images(mini: ImageDataModule):
    split = mini.splits["train"]
    numbers = [5, 3, 900]
    expected = split.__getitems__(numbers)
    split.keep_on(CPU)
    try:
        kept = split.__getitems__(numbers)
    finally:
        split._kept = None
    assert all(torch.equal(one, other) for one, other in zip(kept, expected, strict=True))
    assert split.num_bytes == len(split) * 16 * 16


def test_auto_is_decided_by_the_device():
    assert Speed.chosen({}, CPU, 10**12) == Speed(channels_last=True, compile=False, images_on_device=False)
    mps = Speed.chosen({"compile": True}, torch.device("mps"), 1)
    assert mps == Speed(channels_last=False, compile=True, images_on_device=False)
    assert str(mps) == "channels first, compiled, images in the page cache"


def test_other_values_are_refused(script: Callable[..., tuple[int, str, str]], tmp_path: Path):
    status, _, err = script("train", "speed.compile=maybe")
    assert status == 2
    assert "speed.compile=maybe must be auto, true or false" in err
    assert list(tmp_path.iterdir()) == []
