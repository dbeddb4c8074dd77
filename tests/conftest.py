"""Shared fixtures: one cache of resized images for all tests, small configs, scripts run in this process or in their own."""

import os
import runpy
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from helpers import ROOT, SMALL, composed

from unet_diffusion.data.datamodule import Batch, ImageDataModule
from unet_diffusion.parts import build_datamodule
from unet_diffusion.training.experiment import train


@pytest.fixture(scope="session", autouse=True)
def _cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Resized images go to a folder of this test session, never to the user's."""
    folder = tmp_path_factory.mktemp("cache")
    os.environ["UNET_DIFFUSION_CACHE"] = str(folder)
    return folder


@pytest.fixture(autouse=True)
def _one_thread() -> None:
    """The networks here are so small that threads would only wait for each other."""
    torch.set_num_threads(1)


@pytest.fixture(scope="session")
def mini(_cache: Path) -> ImageDataModule:
    """The embedded images at 16 x 16."""
    return build_datamodule(composed())


@pytest.fixture(scope="session")
def clothes(mini: ImageDataModule) -> Batch:
    """The first 64 test images."""
    return mini.splits["test"].__getitems__(range(64))


@pytest.fixture
def trained(tmp_path: Path) -> Callable[..., Path]:
    """Trains with the given overrides and returns the run folder."""

    def run(*overrides: str) -> Path:
        path = tmp_path / f"run{len(list(tmp_path.iterdir()))}"
        train(composed(*SMALL, *overrides), path, overrides)
        return path

    return run


@pytest.fixture(scope="session")
def short_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of 12 steps with validations at 5, 10 and the end; only to be read."""
    path = tmp_path_factory.mktemp("runs") / "short"
    typed = ("trainer.max_steps=12", "model.channels=[8,16,32]", "trainer.val_check_interval=5", "trainer.log_every_n_steps=2")
    train(composed(*SMALL, *typed), path, typed)
    return path


@pytest.fixture(scope="session")
def generator(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that knows classes and keeps an average, and draws in four steps; 8 steps of training, only to be read."""
    path = tmp_path_factory.mktemp("runs") / "generator"
    typed = (
        "experiment=06_classes",
        "model.channels=[16,32]",
        "sampler=ddim",
        "sampler.steps=4",
        "guidance=0",
        "trainer.max_steps=8",
    )
    train(composed(*SMALL[:-1], *typed), path, typed)
    return path


@pytest.fixture
def script(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Callable[..., tuple[int, str, str]]:
    """Runs a script as `python scripts/NAME.py ARGUMENTS` in an empty folder, but in this process; (status, out, err)."""

    def run(name: str, *arguments: str) -> tuple[int, str, str]:
        monkeypatch.chdir(tmp_path)
        monkeypatch.setattr(sys, "argv", [f"{name}.py", *arguments])
        status = 0
        try:
            runpy.run_path(str(ROOT / "scripts" / f"{name}.py"), run_name="__main__")
        except SystemExit as end:
            status = int(end.code or 0)
        said = capsys.readouterr()
        return status, said.out, said.err

    return run
