"""What tests share: small configs, scripts run in processes of their own, weights out of checkpoints."""

import multiprocessing
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import lightning as L
import numpy as np
import pytest
import torch
from hydra import compose, initialize_config_dir
from omegaconf import DictConfig

from unet_diffusion.data.datamodule import ImageDataModule
from unet_diffusion.evaluation.real import StoredImages
from unet_diffusion.training import experiment

ROOT = Path(__file__).parents[1]
CONF = ROOT / "conf"
SMALL = (
    "callbacks.progress_bar.refresh_rate=0",
    "callbacks.model_summary.max_depth=0",
    "data.batch_size=32",
    "precision=fp32",
    "model=lesson_narrow",
)
"""Overrides for a training of a second or two."""


def composed(*overrides: str, config: str = "train") -> DictConfig:
    """The config that a script would see with these overrides."""
    with initialize_config_dir(str(CONF), version_base="1.3"):
        return compose(config, overrides=list(overrides))


def run_script(name: str, *arguments: str, cwd: Path, threads: int = 1, torchrun: int = 0) -> str:
    """Runs a script in a process of its own, or in some that torchrun starts; it must succeed; returns what it printed."""
    launcher = ("-m", "torch.distributed.run", "--standalone", f"--nproc_per_node={torchrun}") if torchrun else ()
    command = [sys.executable, *launcher, str(ROOT / "scripts" / f"{name}.py"), *arguments]
    environment = os.environ | {"OMP_NUM_THREADS": str(threads), "OMP_WAIT_POLICY": "PASSIVE"}  # kind to a busy machine
    done = subprocess.run(command, cwd=cwd, env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    return done.stdout


def at_once(work: Callable[[], object], count: int = 3) -> None:
    """Does something in several processes that start together; all must succeed."""
    processes = multiprocessing.get_context("fork")
    ready = processes.Barrier(count)

    def start() -> None:
        ready.wait()
        work()

    started = [processes.Process(target=start) for _ in range(count)]
    for process in started:
        process.start()
    for process in started:
        process.join(60)
    assert [process.exitcode for process in started] == [0] * count


def noting(notes: Path, function: Callable[..., object]) -> Callable[..., object]:
    """The same function; each call adds a line to a file, whatever process it is made in."""

    def noted(*arguments: object, **named: object) -> object:
        with notes.open("a") as stream:
            stream.write("done\n")
        return function(*arguments, **named)

    return noted


class Crash(L.Callback):
    """Ends a training after some step by an error that is nobody's mistake."""

    def __init__(self, after: int) -> None:
        self.after = after

    def on_train_batch_end(self, trainer: L.Trainer, *_: Any) -> None:
        if trainer.global_step == self.after:
            raise RuntimeError("a crash")


def with_callback(patch: pytest.MonkeyPatch, callback: L.Callback) -> None:
    """Adds a callback to the trainings that follow."""
    build_trainer = experiment.build_trainer

    def built(*arguments: Any, **named: Any) -> L.Trainer:
        trainer = build_trainer(*arguments, **named)
        trainer.callbacks.insert(0, callback)  # type: ignore[attr-defined]
        return trainer

    patch.setattr(experiment, "build_trainer", built)


def weights(run: Path, checkpoint: str = "last") -> dict[str, torch.Tensor]:
    content = torch.load(run / "checkpoints" / f"{checkpoint}.ckpt", weights_only=True)
    state: dict[str, torch.Tensor] = content["state_dict"]
    return state


def real_images(datamodule: ImageDataModule, split: str, count: int | None, seed: int = 0) -> torch.Tensor:
    """`count` images of a split chosen at random, or all of them in their order, as uint8 (N, C, H, W)."""
    images = StoredImages(datamodule.splits[split])
    chosen = slice(None) if count is None else torch.from_numpy(np.random.default_rng(seed).permutation(len(images))[:count])
    return images[chosen]
