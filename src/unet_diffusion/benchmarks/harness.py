"""What all benchmarks share: settings, timing in rounds, tables, facts about the machine."""

import platform
import re
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal

import lightning as L
import torch
from lightning.pytorch.callbacks import Callback
from omegaconf import DictConfig, open_dict
from pydantic import BaseModel, ConfigDict, Field, PositiveFloat, PositiveInt

from unet_diffusion.config import STRICT
from unet_diffusion.data.datamodule import ImageDataModule
from unet_diffusion.runs import Run
from unet_diffusion.training.train import train

Case = Literal["lesson_loop", "bare_loop", "trainer"]
Cases = dict[str, Callable[[], float]]  # each measures once and returns images per second
Rates = dict[str, list[float]]  # images per second in each round, by case


class Setup(BaseModel):
    """What is measured, and the keys of conf/benchmark.yaml that are not in conf/train.yaml."""

    model_config = ConfigDict(**STRICT, extra="ignore")

    cfg: DictConfig
    datamodule: ImageDataModule
    device: torch.device
    benchmark: Literal["throughput", "sampling", "time_to_mse", "time_to_fd"]
    benchmark_output: str
    benchmark_rounds: PositiveInt
    benchmark_steps: PositiveInt
    benchmark_warmup_steps: PositiveInt
    benchmark_cases: Annotated[list[Case], Field(min_length=1)]
    batch_sizes: Annotated[list[PositiveInt], Field(min_length=1)]
    num_samples: PositiveInt
    target_mse: PositiveFloat
    max_lesson_steps: PositiveInt
    target_fd: PositiveFloat
    scored_samples: PositiveInt

    @property
    def dtype(self) -> torch.dtype:  # autocast
        mixed = {"bf16-mixed": torch.bfloat16, "16-mixed": torch.float16}
        return mixed.get(self.cfg.trainer.precision, torch.float32)


def seconds_for(steps: int, step: Callable[[], object], device: torch.device) -> float:
    """Seconds that `steps` calls of `step` take."""
    start = now(device)
    for _ in range(steps):
        step()
    return now(device) - start


def now(device: torch.device) -> float:
    """The time in seconds after the work of a GPU, which computes asynchronously, is done."""
    getattr(torch, device.type).synchronize()
    return time.perf_counter()


class StepTimer(Callback):
    """Records the times at which the warm-up and the last step of a training ended."""

    times: ClassVar[list[float]] = []  # of the latest training

    def __init__(self, warmup_steps: int) -> None:
        self.warmup_steps = warmup_steps
        self.times.clear()

    def on_train_batch_end(self, trainer: L.Trainer, *args: Any) -> None:
        if trainer.global_step in (self.warmup_steps, trainer.max_steps):
            self.times.append(now(trainer.strategy.root_device))


@contextmanager
def temporary_run(setup: Setup, seed: int, **limits: Any) -> Iterator[Run]:
    """A run that is trained with these `trainer` keys and a `StepTimer`, and then deleted."""
    cfg = setup.cfg.copy()
    timer = {"_target_": f"{__name__}.StepTimer", "warmup_steps": setup.benchmark_warmup_steps}
    with tempfile.TemporaryDirectory() as directory, open_dict(cfg):
        cfg.update(run_dir=f"{directory}/run", seed=seed)
        cfg.callbacks.step_timer = timer
        cfg.callbacks.progress_bar.refresh_rate = 0
        cfg.callbacks.model_summary.max_depth = 0
        cfg.trainer.update(max_epochs=-1, **limits)
        train(cfg)
        yield Run.open(f"{directory}/run")


def run_rounds(cases: Cases, rounds: int) -> Rates:
    """Calls the cases in turns: a slower machine hardly changes the ratios within a round."""
    rates: Rates = {name: [] for name in cases}
    for number in range(1, rounds + 1):
        for name, case in cases.items():
            rates[name].append(case())
        values = ", ".join(f"{name} {each[-1]:,.0f}" for name, each in rates.items())
        print(f"round {number} of {rounds}: {values}", file=sys.stderr)
    return rates


def rate_rows(rates: Rates, baselines: list[str]) -> dict[str, dict[str, str]]:
    """Table rows by case: images per second, and ratios to the baselines within each round."""
    rows = {}
    for name, each in rates.items():
        rows[name] = {"images/s": spread(each, ",.1f")}
        for baseline in baselines:
            ratios = [a / b for a, b in zip(each, rates[baseline], strict=True)]
            rows[name][f"/ {baseline}"] = spread(ratios, ".2f")
    return rows


def spread(values: list[float], format_spec: str) -> str:
    """Median (lowest to highest)."""
    median, low, high = statistics.median(values), min(values), max(values)
    return f"{median:{format_spec}} ({low:{format_spec}} to {high:{format_spec}})"


def markdown_table(rows: Mapping[str, Mapping[str, str | float]]) -> str:
    """Aligned Markdown: a row per key, with the key in the first column."""
    lines = [["", *next(iter(rows.values()))]]
    for name, cells in rows.items():
        lines += [[name, *(c if isinstance(c, str) else f"{c:.4g}" for c in cells.values())]]
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    lines.insert(1, ["-" * widths[0], *("-" * (width - 1) + ":" for width in widths[1:])])
    padded = ([line[0].ljust(widths[0]), *map(str.rjust, line[1:], widths[1:])] for line in lines)
    return "\n".join(f"| {' | '.join(cells)} |" for cells in padded)


def machine_facts(setup: Setup) -> dict[str, Any]:
    """What rates depend on, apart from the config."""
    cpuinfo = Path("/proc/cpuinfo")
    model = re.search(r"model name\s*: (.+)", cpuinfo.read_text()) if cpuinfo.is_file() else None
    processor = model[1] if model else platform.processor() or platform.machine()
    if setup.device.type == "cuda":
        processor = torch.cuda.get_device_name(setup.device)
    return {
        "processor": processor,
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "precision": setup.cfg.trainer.precision,
        "batch size": setup.datamodule.batch_size,
    }
