"""Shared fixtures: one image cache for all tests, small trainings, scripts run in this process."""

import os
import runpy
import signal
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from helpers import FEW_BATCHES, ROOT, SMALL, composed

from unet_diffusion.commands.train import train
from unet_diffusion.data.datamodule import ImageDataModule
from unet_diffusion.data.dataset import Batch
from unet_diffusion.experiment.build import build_datamodule


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Puts the files with slow tests first, and skips tests that need a GPU if there is none."""
    slow = {item.path for item in items if item.get_closest_marker("slow")}
    items.sort(key=lambda item: item.path not in slow)
    for item in items:
        if item.get_closest_marker("gpu") and not torch.cuda.is_available():
            item.add_marker(pytest.mark.skip("no GPU"))


@pytest.fixture(scope="session", autouse=True)
def _cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The image cache of this test session."""
    folder = tmp_path_factory.mktemp("cache")
    os.environ["UNET_DIFFUSION_CACHE"] = str(folder)
    return folder


@pytest.fixture(autouse=True)
def _one_thread() -> None:
    """More threads slow down networks as small as those of the tests."""
    torch.set_num_threads(1)


@pytest.fixture(scope="session")
def mini(_cache: Path) -> ImageDataModule:
    """The embedded images at 16 x 16."""
    return build_datamodule(composed())


@pytest.fixture(scope="session")
def clothes(mini: ImageDataModule) -> Batch:
    """The first 64 test images."""
    return mini.splits["test"].batch(range(64))


def _train(path: Path, *overrides: str) -> Path:
    torch.set_num_threads(1)
    train(composed(*SMALL, f"run_dir={path}", *overrides))
    return path


@pytest.fixture
def trained(tmp_path: Path) -> Callable[..., Path]:
    """Trains with the given overrides and returns the run directory."""

    def run(*overrides: str) -> Path:
        return _train(tmp_path / f"run{len(list(tmp_path.iterdir()))}", *overrides)

    return run


@pytest.fixture(scope="session")
def short_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of the lesson with 12 steps, validated at steps 5, 10 and 12. Read only."""
    return _train(
        tmp_path_factory.mktemp("runs") / "short",
        *FEW_BATCHES,
        "trainer.max_steps=12",
        "trainer.val_check_interval=5",
        "trainer.log_every_n_steps=2",
    )


@pytest.fixture(scope="session")
def generator_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A class-conditional run with EMA, 8 steps of training and 4 sampling steps. Read only."""
    return _train(
        tmp_path_factory.mktemp("runs") / "generator",
        *FEW_BATCHES,
        "logger.tensorboard.log_graph=false",
        "experiment=06_class_conditional",
        "model.channels=[16,32]",
        "sampler=ddim",
        "sampler.steps=4",
        "guidance_scale=1",
        "trainer.max_steps=8",
        "trainer.max_time=null",
    )


@pytest.fixture
def script(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Callable[..., tuple[int, str, str]]:
    """Runs `python scripts/NAME.py ARGUMENTS` in tmp_path, in this process.

    Returns (exit status, standard output, standard error).
    """

    def run(name: str, *arguments: str) -> tuple[int, str, str]:
        monkeypatch.chdir(tmp_path)
        monkeypatch.setattr(sys, "argv", [f"{name}.py", *arguments])
        status = 0
        try:
            runpy.run_path(str(ROOT / "scripts" / f"{name}.py"), run_name="__main__")
        except SystemExit as error:
            status = int(error.code or 0)
        signal.signal(
            signal.SIGINT, signal.default_int_handler
        )  # pytest's, instead of the script's
        captured = capsys.readouterr()
        return status, captured.out, captured.err

    return run
