"""Memory: the most that a training has resident at once, beside a bare loop of the same network."""

import contextlib
import io
import multiprocessing
import resource
import sys
import tempfile
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from omegaconf import DictConfig, OmegaConf

from unet_diffusion.benchmarks.loops import bare_loop
from unet_diffusion.benchmarks.stopwatch import with_stopwatch
from unet_diffusion.benchmarks.study import Study, bars, measured_device, table
from unet_diffusion.checks import whole_number
from unet_diffusion.training.experiment import train


@dataclass
class Memory(Study):
    """Peak resident memory of processes of their own.

    Args:
        steps: of each training, 1 or more.

    Raises:
        ValueError: an argument out of its range.
    """

    steps: int

    def __post_init__(self) -> None:
        whole_number("steps", self.steps, at_least=1)

    def run(self, cfg: DictConfig) -> dict[str, Any]:
        measured_device(cfg)
        config = OmegaConf.to_container(cfg, resolve=True)
        peaks = {
            "import of torch and lightning": peak_of(_nothing),
            "bare loop": peak_of(bare_training, config, self.steps),
            "ours, with validation and test": peak_of(our_training, config, self.steps),
        }
        rows = [[name, f"{peak:,.0f}", f"{peak / peaks['bare loop']:.2f}"] for name, peak in peaks.items()]
        print("\nPeak resident memory:\n")
        print(table(["", "MiB", "of the bare loop"], rows))
        return {"peak_mib": peaks}

    def plot(self, record: dict[str, Any], path: Path) -> None:
        bars(record["peak_mib"], "peak resident memory, MiB").savefig(path, dpi=120)


def peak_of(work: Callable[..., object], *arguments: Any) -> float:
    """Peak resident memory in MiB of a new process that does some work; `work` must be a module's function."""
    with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as processes:
        return processes.submit(_measured, work, torch.get_num_threads(), *arguments).result()


def _measured(work: Callable[..., object], threads: int, *arguments: Any) -> float:
    torch.set_num_threads(threads)
    work(*arguments)
    status = Path("/proc/self/status")
    if status.exists():  # Linux, whose ru_maxrss begins with what the parent had
        return next(int(line.split()[1]) / 2**10 for line in status.read_text().splitlines() if line.startswith("VmHWM:"))
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return float(peak / 2**20 if sys.platform == "darwin" else peak / 2**10)  # bytes there, kibibytes elsewhere


def _nothing() -> None:
    """What the imports alone take."""


def bare_training(config: dict[str, Any], steps: int) -> None:
    cfg = OmegaConf.create(config)
    loop = bare_loop(cfg, measured_device(cfg), channels_last=True)
    for _ in range(steps):
        loop.step()


def our_training(config: dict[str, Any], steps: int) -> None:
    with tempfile.TemporaryDirectory() as folder, contextlib.redirect_stdout(io.StringIO()):
        train(with_stopwatch(OmegaConf.create(config), steps, Path(folder) / "times"), Path(folder) / "run")
