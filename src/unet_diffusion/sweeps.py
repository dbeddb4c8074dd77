"""Sweeps (-m): the directory of each job, and the final table.

multirun.yaml     Hydra's config of the sweep
<overrides>/      one run directory per job
"""

import contextlib
import re
import sys
import zlib
from pathlib import Path
from typing import Any

from hydra.core.hydra_config import HydraConfig
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.errors import HydraException
from hydra.experimental.callback import Callback
from omegaconf import DictConfig, OmegaConf

from unet_diffusion.errors import UserError
from unet_diffusion.experiment.build import check_config
from unet_diffusion.experiment.compose import CONF, compose, read_arguments, references
from unet_diffusion.experiment.explain import USER_ERRORS, explain
from unet_diffusion.experiment.schema import TrainConfig
from unet_diffusion.runs.files import read_json
from unet_diffusion.runs.run import Run

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


def check_jobs(config: DictConfig) -> None:
    """Checks the config of each swept value before the first job trains for minutes."""
    params = config.hydra.sweeper.get("params") or {}
    overrides = [f"{key}={value}" for key, value in params.items()]
    overrides += [str(each) for each in config.hydra.overrides.task]
    parsed = OverridesParser.create().parse_overrides(overrides)
    fixed = [str(each.input_line) for each in parsed if not each.is_sweep_override()]
    swept = {
        each.get_key_element(): list(each.sweep_string_iterator())
        for each in parsed
        if each.is_discrete_sweep()
    }
    first = {key: f"{key}={values[0]}" for key, values in swept.items() if values}
    for key, values in swept.items():
        if "null" in values and (CONF / key).is_dir():
            raise UserError(f"{key}=null: not possible in a sweep (-m) over {key}.")
        for value in values:
            job = {**first, key: f"{key}={value}"}
            with contextlib.suppress(HydraException):  # Hydra reports these itself
                cfg = compose("train", [*fixed, *job.values()])
                try:
                    check_config(read_arguments(cfg, TrainConfig))
                except USER_ERRORS as error:
                    raise UserError(explain(error, references(cfg))) from error


class SweepCallback(Callback):
    """Hydra callback: prepares the directory of a sweep and prints its final table."""

    def on_multirun_start(self, config: DictConfig, **kwargs: Any) -> None:
        if config.hydra.job.config_name == "train":
            try:
                check_jobs(config)
            except UserError as error:  # Hydra would ignore it
                print(f"error: {error}", file=sys.stderr)
                sys.exit(2)
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
        all_scores = [(read_json(file) or {}).get("scores", {}) for file in files]
        values = [scores[metric] for scores in all_scores if metric in scores]
        best = (max if metric in ("test/psnr", "test/ssim") else min)(values, default=None)
        for file, scores in zip(files, all_scores, strict=True):
            names = dict.fromkeys([metric, "test/mse", "test/psnr"])
            shown = [f"{name} {scores[name]:.4f}" for name in names if name in scores]
            is_best = len(values) > 1 and scores.get(metric) == best
            print(f"  {file.parent.name:<50} {'   '.join(shown)}{'   best' * is_best}")
        runs = [Run.open(file.parent).values for file in files]
        groups = ("noise", "schedule", "prediction")
        if len({str([values.get(group) for group in groups]) for values in runs}) > 1:
            print("Different noise, schedule or prediction: compare with evaluate.py.")
        if (directory / _FAILED).exists():
            sys.exit(1)
