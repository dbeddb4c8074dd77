"""Timing: of steps in a bare loop, and of those inside Lightning."""

import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import lightning as L
import torch
from lightning.pytorch.callbacks import Callback


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


STOPWATCH = "unet_diffusion.benchmarks.stopwatch.Stopwatch"


class Stopwatch(Callback):
    """Writes down, as a line of JSON at the end of a fit, when its steps ended by the system's clock, in seconds.

    `first_step`, `warm` (the end of step number `warm_up`) and `last_step`, all after the device has done them; `steps` is how
    many there were after `warm`.

    Args:
        file: to which the line is added.
        warm_up: steps before those that are timed, 1 or more.
    """

    def __init__(self, file: str, warm_up: int = 1) -> None:
        self.file = Path(file)
        self.warm_up = warm_up
        self._ends: dict[str, float] = {}

    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        at = {"first_step": 1, "warm": self.warm_up, "last_step": trainer.max_steps}
        for name, step in at.items():
            if trainer.global_step == step:
                wait_for(pl_module.device)
                self._ends[name] = time.time()

    def on_fit_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        line = json.dumps(self._ends | {"steps": trainer.global_step - self.warm_up, "fit_end": time.time()})
        with self.file.open("a") as stream:
            stream.write(line + "\n")
