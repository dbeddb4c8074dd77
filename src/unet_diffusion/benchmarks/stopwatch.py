"""Timing: of steps in a bare loop, and of those inside Lightning."""

import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import lightning as L
import torch
from lightning.pytorch.callbacks import Callback
from omegaconf import DictConfig, OmegaConf


def wait_for(device: torch.device) -> None:
    """Until a device has done all that it was given; a GPU otherwise only takes orders."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def seconds_of(steps: int, step: Callable[[], object], device: torch.device) -> float:
    """How long `steps` steps take."""
    wait_for(device)
    started = time.perf_counter()
    for _ in range(steps):
        step()
    wait_for(device)
    return time.perf_counter() - started


class Stopwatch(Callback):
    """Notes in a file when things happened in a training, as a line of JSON each: `[name, seconds of the system's clock]`.

    `first_step`, `warm` (the end of step number `warm_up`) and `last_step`, after the device has done them; `fit_end`, and
    `test_end`.

    Args:
        file: to which the lines are added.
        warm_up: 1 or more.
    """

    def __init__(self, file: str, warm_up: int = 1) -> None:
        self.file = Path(file)
        self.warm_up = warm_up

    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        for name, step in (("first_step", 1), ("warm", self.warm_up), ("last_step", trainer.max_steps)):
            if trainer.global_step == step:
                wait_for(pl_module.device)
                self._note(name)

    def on_fit_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self._note("fit_end")

    def on_test_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self._note("test_end")

    def _note(self, name: str) -> None:
        with self.file.open("a") as stream:
            stream.write(json.dumps([name, time.time()]) + "\n")


def with_stopwatch(cfg: DictConfig, steps: int, file: Path, warm_up: int = 1) -> DictConfig:
    """A copy of a training's config that ends after some steps, validates then alone, and notes its times in a file."""
    job = OmegaConf.create(OmegaConf.to_container(cfg))
    assert isinstance(job, DictConfig)
    job.trainer.update({"max_steps": steps, "max_time": None, "max_epochs": -1, "val_check_interval": steps})
    stopwatch = {"_target_": f"{Stopwatch.__module__}.{Stopwatch.__name__}", "file": str(file), "warm_up": warm_up}
    for name, value in {
        "callbacks.stopwatch": stopwatch,
        "callbacks.progress_bar.refresh_rate": 0,
        "callbacks.model_summary.max_depth": 0,
    }.items():
        OmegaConf.update(job, name, value, force_add=True)
    return job


def noted(file: Path) -> dict[str, list[float]]:
    """What stopwatches noted: for each name, when it happened, in the order of the file."""
    times: dict[str, list[float]] = {}
    for line in file.read_text().splitlines():
        name, at = json.loads(line)
        times.setdefault(name, []).append(at)
    return times
