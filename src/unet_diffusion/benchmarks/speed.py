"""Training speed: ours, the lesson's loop and the limit, taken in turns in one process."""

import contextlib
import io
import os
import statistics
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from omegaconf import DictConfig, OmegaConf

from unet_diffusion.benchmarks.loops import Loop, bare_loop, lesson_loop, training_flops
from unet_diffusion.benchmarks.stopwatch import noted, seconds_of, with_stopwatch
from unet_diffusion.benchmarks.study import Study, bars, measured_device, table
from unet_diffusion.checks import whole_number
from unet_diffusion.training.experiment import train

Rate = Callable[[], float]
"""Trains for some steps and returns how many it did a second."""


@dataclass
class Speed(Study):
    """Images a second of several ways to train the same network, and what the hardware could do.

    Args:
        cases: which, by the names in `CASES`; ratios are to `lesson_loop` and to `limit`.
        steps: timed steps of each case in each round, 1 or more.
        warm_up: steps before those, which compile, allocate and fill caches; 1 or more.
        rounds: how often all cases take their turn, 1 or more; medians over them are reported.

    Raises:
        ValueError: an argument out of its range.
    """

    cases: Sequence[str]
    steps: int
    warm_up: int
    rounds: int

    def __post_init__(self) -> None:
        for name in ("steps", "warm_up", "rounds"):
            whole_number(name, getattr(self, name), at_least=1)
        if not self.cases or not all(case in CASES for case in self.cases):
            raise ValueError(f"cases={list(self.cases)} must be some of {', '.join(CASES)}")

    def run(self, cfg: DictConfig) -> dict[str, Any]:
        device = measured_device(cfg)
        size, precision = cfg.data.batch_size, str(cfg.trainer.precision)
        print(f"{cfg.model._target_}, batches of {size}, {precision}, {device}, {torch.get_num_threads()} threads")
        ready = {name: CASES[name](cfg, device, self) for name in self.cases}
        rates: dict[str, list[float]] = {name: [] for name in ready}
        for number in range(1, self.rounds + 1):
            for name, rate in ready.items():
                rates[name].append(rate() * size)
            print(f"round {number} of {self.rounds}: " + ", ".join(f"{name} {each[-1]:,.0f}" for name, each in rates.items()))
        flops = training_flops(cfg, size) / size
        product = product_rate(device, precision)
        record = {
            "rates": rates,
            "images_per_second": {name: statistics.median(each) for name, each in rates.items()},
            "gflop_per_image": flops / 1e9,
            "product_gflops": product / 1e9,
        }
        head = ["", "images/s", "lowest", "highest", "of lesson_loop", "of limit", "of products"]
        print(f"\nImages a second, median of {self.rounds} rounds (lowest to highest), and as multiples within each round:\n")
        print(table(head, self._rows(rates, flops / product)))
        print(f"\nA step costs {flops / 1e9:.3f} GFLOP an image; large matrix products run at {product / 1e9:,.0f} GFLOP/s.")
        return record

    def plot(self, record: dict[str, Any], path: Path) -> None:
        bars(record["images_per_second"], "images a second").savefig(path, dpi=120)

    def _rows(self, rates: dict[str, list[float]], seconds_an_image: float) -> list[list[str]]:
        rows = []
        for name, each in rates.items():
            cells = [name, *(f"{value:,.0f}" for value in (statistics.median(each), min(each), max(each)))]
            for other in ("lesson_loop", "limit"):
                ratios = [mine / theirs for mine, theirs in zip(each, rates.get(other, ()), strict=False)]
                cells.append(f"{statistics.median(ratios):.2f} ({min(ratios):.2f}-{max(ratios):.2f})" if ratios else "")
            rows.append([*cells, f"{statistics.median(each) * seconds_an_image:.0%}"])
        return rows


def product_rate(device: torch.device, precision: str, side: int = 2048) -> float:
    """Floating-point operations a second of a large matrix product: what the hardware can do, as far as PyTorch can use it."""
    dtype = {"bf16-mixed": torch.bfloat16, "16-mixed": torch.float16}.get(precision, torch.float32)
    a, b = (torch.randn(side, side, device=device).to(dtype) for _ in range(2))
    seconds_of(3, lambda: a @ b, device)
    return 2 * side**3 / min(seconds_of(1, lambda: a @ b, device) for _ in range(20))


def ours(cfg: DictConfig, steps: int, warm_up: int, with_validation: bool) -> Rate:
    """Real trainings with all that is on by default, each in a folder of its own.

    Steps a second between the `warm_up`-th step and the last one; with validation, to the end of the fit: a validation, its
    pictures and checkpoints are in it.
    """

    def rate() -> float:
        with tempfile.TemporaryDirectory() as folder, contextlib.redirect_stdout(io.StringIO()):
            job = with_stopwatch(cfg, warm_up + steps, Path(folder) / "times", warm_up)
            OmegaConf.update(job, "trainer.limit_test_batches", 1, force_add=True)  # the test is not in the time
            train(job, Path(folder) / "run")
            times = noted(Path(folder) / "times")
        return float(steps / (times["fit_end" if with_validation else "last_step"][0] - times["warm"][0]))

    return rate


def _loop(loop: Loop, device: torch.device, study: Speed) -> Rate:
    seconds_of(study.warm_up, loop.step, device)
    return lambda: study.steps / seconds_of(study.steps, loop.step, device)


def _limit(cfg: DictConfig, device: torch.device, study: Speed, compiled: bool = False) -> Rate:
    """The faster of the two memory layouts."""
    loops = {channels_last: bare_loop(cfg, device, channels_last, compiled) for channels_last in (False, True)}
    for loop in loops.values():
        seconds_of(study.warm_up, loop.step, device)
    taken = {channels_last: min(seconds_of(10, loop.step, device) for _ in range(3)) for channels_last, loop in loops.items()}
    best = min(taken, key=lambda channels_last: taken[channels_last])
    faster = max(taken.values()) / taken[best]
    print(f"limit{'_compiled' * compiled}: channels {'last' if best else 'first'}, {faster:.2f} x as fast as the other layout")
    return _loop(loops[best], device, study)


def _lesson(cfg: DictConfig, device: torch.device, study: Speed, **how: Any) -> Rate:
    return _loop(lesson_loop(cfg, device, **how), device, study)


def _ours(cfg: DictConfig, device: torch.device, study: Speed) -> Rate:
    return ours(cfg, study.steps, study.warm_up, with_validation=False)


def _ours_with_validation(cfg: DictConfig, device: torch.device, study: Speed) -> Rate:
    return ours(cfg, cfg.trainer.val_check_interval, study.warm_up, with_validation=True)


_WORKERS = max(1, (os.cpu_count() or 1) - 1)
CASES: dict[str, Callable[[DictConfig, torch.device, Speed], Rate]] = {
    "lesson_loop": _lesson,
    "lesson_loop_workers": partial(_lesson, workers=_WORKERS),
    "lesson_loop_compiled": partial(_lesson, compiled=True),
    "limit": _limit,
    "limit_compiled": partial(_limit, compiled=True),
    "ours": _ours,
    "ours_with_validation": _ours_with_validation,
}
