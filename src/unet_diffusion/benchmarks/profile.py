"""Where a training step's time goes, operation by operation: in the lesson's loop, and in ours."""

import contextlib
import io
import json
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import lightning as L
import torch
from lightning.pytorch.callbacks import Callback
from omegaconf import DictConfig, OmegaConf
from torch.profiler import ProfilerActivity, profile

from unet_diffusion.benchmarks.loops import lesson_loop
from unet_diffusion.benchmarks.stopwatch import seconds_of, wait_for, with_stopwatch
from unet_diffusion.benchmarks.study import Study, bars, measured_device, table
from unet_diffusion.checks import whole_number
from unet_diffusion.runs import write_json
from unet_diffusion.training.experiment import train

_BETWEEN = "between operations: Python"


@dataclass
class Profile(Study):
    """Profiles (PyTorch's profiler) some steps of both.

    Args:
        steps: profiled, 1 or more.
        warm_up: steps before those, 1 or more.
        rows: operations listed, those that take longest; 1 or more.

    Raises:
        ValueError: an argument out of its range.
    """

    steps: int
    warm_up: int
    rows: int

    def __post_init__(self) -> None:
        for name in ("steps", "warm_up", "rows"):
            whole_number(name, getattr(self, name), at_least=1)

    def run(self, cfg: DictConfig) -> dict[str, Any]:
        device = measured_device(cfg)
        loop = lesson_loop(cfg, device)
        seconds_of(self.warm_up, loop.step, device)
        with Profiled(device) as before:
            for _ in range(self.steps):
                loop.step()
        taken = {"lesson_loop": before.milliseconds(self.steps), "ours": self._ours(cfg)}
        for name, operations in taken.items():
            total = sum(operations.values())
            longest = sorted(operations.items(), key=lambda item: -item[1])[: self.rows]
            print(f"\n{name}: {total:.1f} ms a step, profiled\n")
            print(table(["", "ms", "share"], [[what, f"{ms:.2f}", f"{ms / total:.1%}"] for what, ms in longest]))
        return {"milliseconds": taken}

    def plot(self, record: dict[str, Any], path: Path) -> None:
        kinds = {f"{name}: {kind}": ms for name, each in record["milliseconds"].items() for kind, ms in _kinds(each).items()}
        bars(kinds, "ms a step").savefig(path, dpi=120)

    def _ours(self, cfg: DictConfig) -> dict[str, float]:
        with tempfile.TemporaryDirectory() as folder, contextlib.redirect_stdout(io.StringIO()):
            job = with_stopwatch(cfg, self.warm_up + self.steps, Path(folder) / "times")
            file = Path(folder) / "profile.json"
            callback = {
                "_target_": f"{ProfileSteps.__module__}.{ProfileSteps.__name__}",
                "file": str(file),
                "warm_up": self.warm_up,
                "steps": self.steps,
            }
            OmegaConf.update(job, "callbacks.profile", callback, force_add=True)
            OmegaConf.update(job, "trainer.limit_test_batches", 1, force_add=True)
            train(job, Path(folder) / "run")
            operations: dict[str, float] = json.loads(file.read_text())
            return operations


class Profiled:
    """Profiles what runs inside `with`."""

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self._profile = profile(activities=[ProfilerActivity.CPU, *[ProfilerActivity.CUDA] * (device.type == "cuda")])
        self._wall = 0.0

    def __enter__(self) -> "Profiled":
        wait_for(self.device)
        self._profile.start()
        self._wall = time.perf_counter()
        return self

    def __exit__(self, *_: object) -> None:
        wait_for(self.device)
        self._wall = time.perf_counter() - self._wall
        self._profile.stop()

    def milliseconds(self, steps: int) -> dict[str, float]:
        """Of each operation by itself, for one of `steps` steps; what no operation accounts for is between them."""
        on_device = self.device.type == "cuda"
        taken: dict[str, float] = {}
        for entry in self._profile.key_averages():
            microseconds = entry.self_device_time_total if on_device else entry.self_cpu_time_total
            taken[entry.key] = microseconds / 1000 / steps
        taken[_BETWEEN] = max(0.0, self._wall * 1000 / steps - sum(taken.values()))
        return taken


class ProfileSteps(Callback):
    """Profiles some steps of a training and writes what each operation took, in milliseconds a step.

    Args:
        file: JSON to write.
        warm_up: steps before.
        steps: to profile.
    """

    def __init__(self, file: str, warm_up: int, steps: int) -> None:
        self.file = Path(file)
        self.warm_up = warm_up
        self.steps = steps
        self._profiled: Profiled | None = None

    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        if trainer.global_step == self.warm_up:
            self._profiled = Profiled(pl_module.device).__enter__()
        elif trainer.global_step == self.warm_up + self.steps and self._profiled is not None:
            self._profiled.__exit__()
            write_json(self.file, self._profiled.milliseconds(self.steps))


def _kinds(operations: dict[str, float]) -> dict[str, float]:
    """Summed by what they are for."""
    rules: Sequence[tuple[str, Callable[[str], bool]]] = (
        ("convolutions", lambda name: "conv" in name),
        ("loader", lambda name: "DataLoader" in name),
        ("optimizer", lambda name: "Optimizer" in name or "_foreach" in name or "fused_adam" in name),
        ("Python", lambda name: name == _BETWEEN),
        ("the rest", lambda name: True),
    )
    summed = dict.fromkeys((kind for kind, _ in rules), 0.0)
    for name, ms in operations.items():
        summed[next(kind for kind, holds in rules if holds(name))] += ms
    return summed
