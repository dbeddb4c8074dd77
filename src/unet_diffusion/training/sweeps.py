"""Sweeps (-m): the directory of each job, and the final table.

multirun.yaml     Hydra's config of the sweep
<overrides>/      one run directory per job
"""

import re
import sys
import zlib
from pathlib import Path
from typing import Any

from hydra.core.hydra_config import HydraConfig
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.experimental.callback import Callback
from omegaconf import DictConfig, OmegaConf

from unet_diffusion.runs import read_json

_MAX_NAME_LENGTH = 80
_FAILED = ".failed"


def job_overrides() -> list[str]:
    """The overrides of this job that are not the same for the whole sweep."""
    job = HydraConfig.get()
    multirun = Path(job.sweep.dir) / "multirun.yaml"
    overrides = list(OmegaConf.load(multirun).hydra.overrides.task) if multirun.is_file() else []
    parsed = OverridesParser.create().parse_overrides(overrides)
    constant = {
        f"{override.get_key_element()}={override.get_value_element_as_str()}"
        for override in parsed
        if not override.is_sweep_override()
    }
    return [override for override in job.overrides.task if override not in constant]


def job_directory() -> Path:
    """The run directory of this job; a function of its overrides, so that a sweep can resume."""
    overrides = job_overrides()
    joined = ",".join(overrides)
    name = re.sub(r"[^\w.]+", "-", joined).strip("-")
    ambiguous = not all(re.fullmatch(r"[\w.]+", each.partition("=")[2]) for each in overrides)
    if ambiguous or len(name) > _MAX_NAME_LENGTH:
        name = f"{name[:_MAX_NAME_LENGTH]}-{zlib.crc32(joined.encode()):08x}"
    return Path(HydraConfig.get().sweep.dir) / (name or "job")


def report_failure(message: str) -> None:
    """Prints the error of this job, and marks the sweep as failed; it can be another process."""
    job = HydraConfig.get()
    print(f"error: job {job.job.num} ({' '.join(job_overrides())}): {message}", file=sys.stderr)
    (Path(job.sweep.dir) / _FAILED).touch()


class SweepCallback(Callback):
    """Hydra callback: prepares the directory of a sweep and prints its final table."""

    def on_multirun_start(self, config: DictConfig, **kwargs: Any) -> None:
        directory = Path(config.hydra.sweep.dir)
        directory.mkdir(parents=True, exist_ok=True)
        if finished := list(directory.glob("*/metrics.json")):
            print(f"Resuming the sweep in {directory}: {len(finished)} jobs are finished.")
        (directory / _FAILED).unlink(missing_ok=True)
        OmegaConf.save(config, directory / "multirun.yaml")  # Optuna's sweeper does not

    def on_multirun_end(self, config: DictConfig, **kwargs: Any) -> None:
        directory = Path(config.hydra.sweep.dir)
        metric = str(config.get("optimized_metric"))
        files = sorted(directory.glob("*/metrics.json"))
        if files:
            print(f"\nScores of the sweep in {directory}:")
        for file in files:
            scores = (read_json(file) or {}).get("scores", {})
            names = dict.fromkeys([metric, "test/mse", "test/psnr"])
            shown = [f"{name} {scores[name]:.4f}" for name in names if name in scores]
            print(f"  {file.parent.name:<50} {'   '.join(shown)}")
        configs: list[Any] = [OmegaConf.load(file.with_name("config.yaml")) for file in files]
        groups = ("noise", "schedule", "prediction", "weighting")
        if len({str([config.get(group) for group in groups]) for config in configs}) > 1:
            print("Different noise, schedule, prediction or weighting: compare with evaluate.py.")
        if (directory / _FAILED).exists():
            sys.exit(1)
