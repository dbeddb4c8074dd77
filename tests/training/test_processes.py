"""Trainings in several processes: real ones, two at a time, on the CPU."""

import csv
import json
import re
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from helpers import SMALL, composed, run_script, weights

from unet_diffusion.training.experiment import train

SGD = ("optimizer=adam", "optimizer._target_=torch.optim.SGD", "~optimizer.betas", "lr_schedule=constant")
"""Adam divides each gradient by its size, and so would make the last bit of one that should be zero as large as any other."""
LOGGED = ("trainer.max_steps=4", "trainer.val_check_interval=2", "trainer.log_every_n_steps=1", "data.val_fraction=0.0202")
UNET = (*SMALL[:-1], "experiment=06_classes", "model.channels=[16,32]", "sampler.steps=1", "guidance=0")
TWO = ("accelerator=ddp", "trainer.accelerator=cpu")


def logged(run: Path, name: str) -> list[float]:
    return [float(row[name]) for row in csv.DictReader((run / "metrics.csv").open()) if row.get(name)]


def assert_alike(one: Path, other: Path, *not_logged_alike: str) -> None:
    a, b = weights(one), weights(other)
    assert a.keys() == b.keys()
    for name in a:
        torch.testing.assert_close(b[name], a[name], rtol=1e-4, atol=1e-5, msg=lambda said, name=name: f"{name}: {said}")
    for name in {"train/loss", "val/loss", "val/mse", "val/psnr", "val/ssim"} - {*not_logged_alike}:
        assert logged(one, name), name
        assert logged(other, name) == pytest.approx(logged(one, name), rel=1e-4), name
    scores, others = (json.loads((run / "metrics.json").read_text())["scores"] for run in (one, other))
    assert others == pytest.approx(scores, rel=1e-4)


def trained_alone(path: Path, *typed: str) -> Path:
    train(composed(*typed), path, typed)
    return path


@pytest.mark.slow
def test_two_processes_with_half_the_batch_train_as_one(tmp_path: Path):
    """Also with an odd number of validation images, mirrored images, hidden classes, averaged weights, and a rest half-way."""
    typed = (*UNET, *LOGGED, *SGD, "optimizer.lr=0.02", "data.flip=true")
    said = run_script("train", *typed, *TWO, "data.batch_size=16", "trainer.max_steps=2", cwd=tmp_path)
    assert said.count("Trained for") == said.count("speed on cpu") == 1
    (two,) = (tmp_path / "runs" / "06_classes").iterdir()
    run_script("train", f"resume={two}", "trainer.max_steps=4", cwd=tmp_path)
    assert_alike(trained_alone(tmp_path / "one", *typed), two)


@pytest.mark.slow
def test_two_processes_of_torchrun_train_one_run_and_norms_see_all_images(tmp_path: Path):
    typed = (*SMALL, *LOGGED, *SGD, "optimizer.lr=0.01")
    said = run_script("train", *typed, *TWO, "data.batch_size=16", cwd=tmp_path, torchrun=2)
    assert said.count("Trained for") == said.count("speed on cpu") == 1
    (two,) = (tmp_path / "runs" / "lesson").iterdir()
    assert json.loads((two / "metrics.json").read_text())["images_seen"] == 4 * 16 * 2
    assert_alike(trained_alone(tmp_path / "one", *typed), two)


def test_two_accumulated_batches_train_as_one(tmp_path: Path):
    typed = (*UNET, *LOGGED, *SGD, "optimizer.lr=0.02")
    one = trained_alone(tmp_path / "one", *typed)
    halves = ("data.batch_size=16", "trainer.accumulate_grad_batches=2", "trainer.val_check_interval=4")
    assert_alike(one, trained_alone(tmp_path / "two", *typed, *halves), "train/loss")  # which is that of half a batch


@pytest.mark.parametrize(
    ("typed", "said"),
    [
        ((), "started 2 processes, but .* ask for 1: add accelerator=ddp trainer.devices=2"),
        (("accelerator=ddp", "trainer.accelerator=cpu", "trainer.devices=3"), "started 2 processes, but .* ask for 3"),
        (("-m", "seed=0,1"), "-m does not go with torchrun"),
    ],
)
def test_a_launch_that_does_not_fit_is_refused(
    script: Callable[..., tuple[int, str, str]], monkeypatch: pytest.MonkeyPatch, tmp_path: Path, typed: tuple[str], said: str
):
    launched = {"TORCHELASTIC_RUN_ID": "none", "WORLD_SIZE": "2", "RANK": "0", "LOCAL_RANK": "0"}
    for name, value in launched.items():
        monkeypatch.setenv(name, value)
    status, _, error = script("train", *SMALL, *typed)
    assert status == 2
    assert error.count("\n") == 1
    assert re.search(said, error), error
    assert not list(tmp_path.iterdir())


def test_batches_that_the_processes_cannot_fill_are_refused(script: Callable[..., tuple[int, str, str]], tmp_path: Path):
    status, _, error = script("train", *SMALL, *TWO, "data.batch_size=3000")
    assert (status, list(tmp_path.iterdir())) == (2, [])
    assert "data.batch_size=3000 in each of 2 processes is more than the 4500 training images" in error
    assert "try data.batch_size=1125" in error
