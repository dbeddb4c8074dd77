"""Start: from typing a command to its first step, and what the second job of a sweep still costs."""

import os
import statistics
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig

from unet_diffusion.benchmarks.stopwatch import noted
from unet_diffusion.benchmarks.study import Study, bars, table
from unet_diffusion.checks import whole_number

_TRAIN = Path(__file__).parents[3] / "scripts" / "train.py"
_IMPORT = "a bare import of torch and lightning"
_FIRST = "train.py to the end of its first step"
_SECOND = "the second job of a sweep, from the end of the first job to that of its first step"


@dataclass
class Start(Study):
    """Seconds before the first step is done, of real processes, each started several times in turns.

    Args:
        rounds: how often, 1 or more; medians are reported.

    Raises:
        ValueError: an argument out of its range.
    """

    rounds: int

    def __post_init__(self) -> None:
        whole_number("rounds", self.rounds, at_least=1)

    def run(self, cfg: DictConfig) -> dict[str, Any]:
        typed = [word for word in HydraConfig.get().overrides.task if not word.lstrip("+").startswith("benchmark")]
        seconds: dict[str, list[float]] = {_IMPORT: [], _FIRST: [], _SECOND: []}
        for number in range(self.rounds + 1):  # the first one fills the caches of files
            once = {_IMPORT: _seconds_of([sys.executable, "-c", "import torch, lightning"]), **_sweep(typed)}
            if number:
                for name, value in once.items():
                    seconds[name].append(value)
        medians = {name: statistics.median(each) for name, each in seconds.items()}
        rows = [
            [name, f"{medians[name]:.2f}", f"{min(each):.2f}", f"{max(each):.2f}", f"{medians[name] / medians[_IMPORT]:.2f}"]
            for name, each in seconds.items()
        ]
        print(f"\nMedian of {self.rounds} (lowest to highest):\n")
        print(table(["", "seconds", "lowest", "highest", "of the import"], rows))
        return {"seconds": seconds, "median": medians}

    def plot(self, record: dict[str, Any], path: Path) -> None:
        bars(record["median"], "seconds").savefig(path, dpi=120)


def _seconds_of(command: list[str]) -> float:
    started = time.perf_counter()
    subprocess.run(command, check=True, capture_output=True)
    return time.perf_counter() - started


def _sweep(typed: list[str]) -> dict[str, float]:
    """A sweep of two jobs of two steps."""
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "times"
        short = ["trainer.max_steps=2", "trainer.max_time=null", "seed=0,1", f"output_dir={folder}/runs"]
        stopwatch = [
            "+callbacks.stopwatch._target_=unet_diffusion.benchmarks.stopwatch.Stopwatch",
            f"+callbacks.stopwatch.file={file}",
        ]
        started = time.time()
        command = [sys.executable, str(_TRAIN), "-m", *typed, *short, *stopwatch]
        done = subprocess.run(command, capture_output=True, text=True, env=os.environ | {"HYDRA_FULL_ERROR": "1"})
        if done.returncode:
            raise RuntimeError(done.stderr[-2000:])
        times = noted(file)
    return {_FIRST: times["first_step"][0] - started, _SECOND: times["first_step"][1] - times["test_end"][0]}
