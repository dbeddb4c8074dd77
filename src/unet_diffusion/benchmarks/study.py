"""What all benchmarks share: a study measures, says what came out, and leaves a record and a plot."""

import os
import platform
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from matplotlib.figure import Figure
from omegaconf import DictConfig

from unet_diffusion.parts import build
from unet_diffusion.runs import write_json
from unet_diffusion.training.hardware import fast_precision, pick_device


class Study(ABC):
    """One benchmark: a file in `conf/benchmark/` chooses it."""

    @abstractmethod
    def run(self, cfg: DictConfig) -> dict[str, Any]:
        """Measures a training's config (`conf/train.yaml`), prints what comes out and returns it, as plain data."""

    @abstractmethod
    def plot(self, record: dict[str, Any], path: Path) -> None:
        """Draws the record as a PNG."""


def benchmark(cfg: DictConfig) -> dict[str, Any]:
    """Runs the study that the config names at `benchmark.study`; writes `<name>.json` and `<name>.png` into `benchmark.output`.

    Raises:
        UserError: the study refuses its arguments.
    """
    study: Study = build(cfg, "benchmark.study")
    name = str(cfg.benchmark.name)
    output = Path(str(cfg.benchmark.output)).expanduser()
    record = study.run(cfg)
    machine = {"processor": _processor(), "threads": torch.get_num_threads(), "torch": torch.__version__}
    write_json(output / f"{name}.json", machine | record)
    study.plot(record, output / f"{name}.png")
    print(f"\n{', '.join(f'{key} {value}' for key, value in machine.items())}")
    for ending in ("json", "png"):
        print(f"{'Record' if ending == 'json' else 'Plot':<7}{os.path.relpath(output / name)}.{ending}")
    return record


def measured_device(cfg: DictConfig) -> torch.device:
    """Where the config trains; its `precision=auto` is decided, so that all cases compute in the same."""
    accelerator = str(cfg.trainer.accelerator)
    if cfg.trainer.precision == "auto":
        cfg.trainer.precision = fast_precision(accelerator)
    return pick_device("cuda" if accelerator == "gpu" and torch.cuda.is_available() else accelerator.replace("gpu", "mps"))


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Text in columns, as Markdown has it."""
    widths = [max(len(row[i]) for row in [head, *rows]) for i in range(len(head))]
    lines = [head, ["-" * widths[0], *("-" * (width - 1) + ":" for width in widths[1:])], *rows]
    padded = (
        [line[0].ljust(widths[0]), *(cell.rjust(width) for cell, width in zip(line[1:], widths[1:], strict=True))]
        for line in lines
    )
    return "\n".join(f"| {' | '.join(line)} |" for line in padded)


def bars(values: Mapping[str, float], title: str) -> Figure:
    """A bar for each name, with its value."""
    figure = Figure(figsize=(7, 0.4 * len(values) + 1), layout="constrained")
    axes = figure.subplots()
    drawn = axes.barh(list(values), list(values.values()))
    axes.bar_label(drawn, fmt="{:,.3g}" if max(values.values()) < 100 else "{:,.0f}", padding=3)
    axes.invert_yaxis()
    axes.set(xlabel=title)
    axes.margins(x=0.15)
    return figure


def _processor() -> str:
    if torch.cuda.is_available():
        return torch.cuda.get_device_name()
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        return next(line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor() or platform.machine()
