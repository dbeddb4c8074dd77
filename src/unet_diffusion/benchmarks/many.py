"""Many images: what conversion and training of a large dataset take, beside those of a small one."""

import shutil
import statistics
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from omegaconf import DictConfig, OmegaConf
from torch import Tensor

from unet_diffusion.benchmarks.memory import our_training, peak_of
from unet_diffusion.benchmarks.speed import ours
from unet_diffusion.benchmarks.study import Study, bars, measured_device, table
from unet_diffusion.checks import whole_number
from unet_diffusion.data.sources import ImageSource, RawSplit, SplitName
from unet_diffusion.parts import build_datamodule

_SIZE = 32


class MadeUp(ImageSource):
    """Colour images of random bytes, 32 x 32, made when they are read.

    Args:
        count: training images; of test images there are 1,000.
    """

    name = "made_up"

    def __init__(self, count: int) -> None:
        self.count = count

    def fingerprint(self, split: SplitName, root: Path | None) -> str | None:
        return f"{self.count}"

    def open(self, split: SplitName, root: Path | None) -> RawSplit:
        return MadeUpSplit(self.count if split == "train" else 1000)


class MadeUpSplit(RawSplit):
    """So many of them, without classes."""

    chunk_size = 1000
    class_names = ()

    def __init__(self, count: int) -> None:
        self.labels = np.full(count, -1, dtype=np.int64)

    def read(self, start: int, stop: int) -> Tensor:
        made = np.random.default_rng(start).integers(0, 256, (stop - start, 3, _SIZE, _SIZE), dtype=np.uint8)
        return torch.from_numpy(made)


@dataclass
class Many(Study):
    """Conversion into the cache and training, over the number of images.

    Args:
        counts: of training images; ratios are to the first. 10,000 or more each.
        steps: of each training, 1 or more; twice as many run where memory is measured.
        rounds: how often the trainings take their turns, 1 or more; medians are reported.

    Raises:
        ValueError: an argument out of its range.
    """

    counts: list[int]
    steps: int
    rounds: int

    def __post_init__(self) -> None:
        for name in ("steps", "rounds"):
            whole_number(name, getattr(self, name), at_least=1)
        for count in self.counts:
            whole_number("counts", count, at_least=10_000)

    def run(self, cfg: DictConfig) -> dict[str, Any]:
        measured_device(cfg)
        caches = Path(str(cfg.benchmark.output)).expanduser() / "made_up"
        try:
            jobs = {count: _with_many(cfg, count, caches / str(count)) for count in self.counts}
            entries = {count: self._alone(job) for count, job in jobs.items()}
            rates: dict[int, list[float]] = {count: [] for count in jobs}
            for _ in range(self.rounds):
                for count, job in jobs.items():
                    rates[count].append(ours(job, self.steps, 5, with_validation=False)() * cfg.data.batch_size)
        finally:
            shutil.rmtree(caches, ignore_errors=True)
        for count, each in rates.items():
            entries[count]["images_per_second"] = statistics.median(each)
        base = rates[self.counts[0]]
        head = ["images", "converted/s", "peak MiB converting", "peak MiB training", "trained/s", "of the first"]
        rows = []
        for count, entry in entries.items():
            ratios = [mine / first for mine, first in zip(rates[count], base, strict=True)]
            values = [count, *(entry[name] for name in ("converted_per_second", "converting_mib", "training_mib"))]
            rows.append([*(f"{value:,.0f}" for value in (*values, statistics.median(rates[count])))])
            rows[-1].append(f"{statistics.median(ratios):.2f} ({min(ratios):.2f}-{max(ratios):.2f})")
        print("\n" + table(head, rows))
        return {
            "entries": {str(count): entry for count, entry in entries.items()},
            "rates": {str(n): r for n, r in rates.items()},
        }

    def plot(self, record: dict[str, Any], path: Path) -> None:
        peaks = {f"{int(count):,} images": entry["training_mib"] for count, entry in record["entries"].items()}
        bars(peaks, "peak resident memory of a training, MiB").savefig(path, dpi=120)

    def _alone(self, job: DictConfig) -> dict[str, float]:
        config = OmegaConf.to_container(job, resolve=True)
        started = time.perf_counter()
        converting = peak_of(_convert, config)
        seconds = time.perf_counter() - started
        return {
            "converted_per_second": job.data.source.count / seconds,
            "converting_mib": converting,
            "training_mib": peak_of(our_training, config, 2 * self.steps),
        }


def _with_many(cfg: DictConfig, count: int, cache_dir: Path) -> DictConfig:
    job = OmegaConf.create(OmegaConf.to_container(cfg))
    assert isinstance(job, DictConfig)
    source = {"_target_": f"{MadeUp.__module__}.{MadeUp.__name__}", "count": count}
    job.data.update({"source": source, "image_size": _SIZE, "channels": 3, "root": None})
    job.cache_dir = str(cache_dir)
    for name in ("trainer.limit_val_batches", "trainer.limit_test_batches"):  # they are the same for any number of images
        OmegaConf.update(job, name, 1, force_add=True)
    return job


def _convert(config: dict[str, Any]) -> None:
    build_datamodule(OmegaConf.create(config))
