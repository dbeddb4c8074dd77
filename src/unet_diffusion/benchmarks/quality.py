"""Time to quality: how long it takes to denoise as well as the course's settings do at their end."""

import contextlib
import io
import json
import statistics
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from omegaconf import DictConfig

from unet_diffusion.benchmarks.loops import lesson_loop
from unet_diffusion.benchmarks.stopwatch import seconds_of
from unet_diffusion.benchmarks.study import Study, bars, measured_device, table
from unet_diffusion.checks import number, whole_number
from unet_diffusion.diffusion.denoiser import Denoiser
from unet_diffusion.diffusion.predictions import X0Prediction
from unet_diffusion.diffusion.schedules import LinearSchedule
from unet_diffusion.evaluation.denoising import score_levels
from unet_diffusion.parts import build_datamodule
from unet_diffusion.training.experiment import train


@dataclass
class Quality(Study):
    """Seconds of training until the test MSE at half noise is at `target`.

    Of the lesson's loop, looked at every so many steps, and of ours, whose config must be one that reaches it at its end.

    The clock of the lesson's loop stands still while it is scored. Ours runs through validations, pictures and checkpoints.

    Args:
        target: test MSE, above 0.
        every: steps between two looks at the lesson's loop, 1 or more.
        most: steps after which it is given up, 1 or more.
        rounds: how often ours is trained, with the seeds 0, 1, ...; 1 or more.

    Raises:
        ValueError: an argument out of its range.
    """

    target: float
    every: int
    most: int
    rounds: int

    def __post_init__(self) -> None:
        number("target", self.target, low=1e-6)
        for name in ("every", "most", "rounds"):
            whole_number(name, getattr(self, name), at_least=1)

    def run(self, cfg: DictConfig) -> dict[str, Any]:
        device = measured_device(cfg)
        ours = [self._ours(cfg, seed) for seed in range(self.rounds)]
        lesson = self._lesson_loop(cfg, device)
        seconds = statistics.median(entry["seconds"] for entry in ours)
        rows = [["lesson_loop", f"{lesson[-1]['seconds']:.1f}", str(lesson[-1]["steps"]), f"{lesson[-1]['mse']:.4f}"]]
        rows += [[f"ours, seed {i}", f"{e['seconds']:.1f}", str(e["steps"]), f"{e['mse']:.4f}"] for i, e in enumerate(ours)]
        print(f"\nUntil the test MSE at half noise is {self.target}:\n")
        print(table(["", "seconds", "steps", "test MSE"], rows))
        reached = lesson[-1]["mse"] <= self.target
        print(f"\nOurs (median): {lesson[-1]['seconds'] / seconds:.1f} times as fast{'' if reached else ', at least'}.")
        return {"target": self.target, "ours": ours, "lesson_loop": lesson, "ratio": lesson[-1]["seconds"] / seconds}

    def plot(self, record: dict[str, Any], path: Path) -> None:
        seconds = {"lesson_loop": record["lesson_loop"][-1]["seconds"]}
        seconds |= {f"ours, seed {i}": entry["seconds"] for i, entry in enumerate(record["ours"])}
        bars(seconds, f"seconds until the test MSE at half noise is {record['target']}").savefig(path, dpi=120)

    def _ours(self, cfg: DictConfig, seed: int) -> dict[str, float]:
        cfg.seed = seed
        with tempfile.TemporaryDirectory() as folder, contextlib.redirect_stdout(io.StringIO()):
            started = time.perf_counter()
            scores = train(cfg.copy(), Path(folder) / "run")
            whole = time.perf_counter() - started
            record = json.loads((Path(folder) / "run" / "metrics.json").read_text())
        entry = {"seconds": record["seconds"], "whole": whole, "steps": record["steps"], "mse": scores["test/mse"]}
        print(f"ours, seed {seed}: {entry['seconds']:.1f} s to a test MSE of {entry['mse']:.4f}")
        return entry

    def _lesson_loop(self, cfg: DictConfig, device: torch.device) -> list[dict[str, float]]:
        torch.manual_seed(0)
        loop = lesson_loop(cfg, device)
        denoiser = Denoiser(loop.net, LinearSchedule(), X0Prediction())
        datamodule = build_datamodule(cfg)
        looks: list[dict[str, float]] = []
        while not looks or (looks[-1]["mse"] > self.target and looks[-1]["steps"] < self.most):
            loop.net.train()
            seconds = seconds_of(self.every, loop.step, device)
            loop.net.eval()
            (score,) = score_levels(denoiser, datamodule.test_dataloader(), [0.5], cfg.noise_seed, device)
            before = looks[-1] if looks else {"seconds": 0.0, "steps": 0}
            look = {
                "seconds": before["seconds"] + seconds,
                "steps": before["steps"] + self.every,
                "mse": score.answers["network"]["mse"],
            }
            looks.append(look)
            print(f"lesson_loop: {look['seconds']:.1f} s, {look['steps']} steps: {look['mse']:.4f}")
        return looks
