"""A training as a job of Hydra's: where its run goes, also in a sweep and for the processes of DDP, and what it is worth."""

import json
import math
import os
import re
import shutil
from collections.abc import Mapping
from pathlib import Path

from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig

from unet_diffusion.errors import UserError
from unet_diffusion.paths import named_path
from unet_diffusion.runs import unique_name
from unet_diffusion.sweeps import is_finished, is_sweep_job, job_folder

RUN_PATH = "UNET_DIFFUSION_RUN_PATH"
"""Environment variable that tells the processes that DDP starts which folder the first one made."""


def planned_job(cfg: DictConfig) -> tuple[Path, list[str]]:
    """Where the run of this Hydra job goes, and what was typed for it; notes the choice made in each group in `cfg.choices`.

    The place is `<output_dir>/<name>/<time>-<id>`, or a numbered folder in the sweep's. That exists already where the sweep is
    gone on with and has begun this job; one that did not come to its end is noted in `cfg.resume`.
    """
    job = HydraConfig.get()
    typed = [word for word in job.overrides.task if not word.startswith("sweep_dir=")]  # it says where, not what
    cfg.sweep_dir = None
    if not re.fullmatch(r"\w[\w.-]*(/\w[\w.-]*)*", str(cfg.name)):
        raise UserError(f"name={cfg.name} must be made of letters, digits, '.', '_' and '-', with '/' between folders")
    cfg.choices = {group: name for group, name in sorted(job.runtime.choices.items()) if "/" not in group and name}
    if cfg.resume is not None and is_sweep_job():
        raise UserError(f"resume={cfg.resume} goes on with a single run: leave out -m")
    if int(os.environ.get("LOCAL_RANK", 0)) > 0 and RUN_PATH in os.environ:
        return Path(os.environ[RUN_PATH]), typed
    if not is_sweep_job():
        return named_path("output_dir", cfg.output_dir).absolute() / str(cfg.name) / unique_name(), typed
    if _starts_processes(cfg.trainer):
        raise UserError(
            "accelerator=ddp does not go with -m, as each of its processes would start the sweep again: run its jobs one at a "
            "time, without -m, or with trainer.devices=1 each and several at once by hydra/launcher=joblib"
        )
    path = job_folder(typed)
    if (path / "config.yaml").exists() and not is_finished(path):
        cfg.resume = str(path)
    elif not is_finished(path):
        shutil.rmtree(path, ignore_errors=True)  # of a job that was killed before it had written what it is
    return path, typed


def finished_scores(path: Path) -> dict[str, float] | None:
    """The final scores of the run in this folder; None where it has none yet."""
    if not is_finished(path):
        return None
    print(f"{path.name} is finished: skipped.")
    scores: dict[str, float] = json.loads((path / "metrics.json").read_text())["scores"]
    return scores


def worth(scores: Mapping[str, float], optimized_metric: str) -> float | None:
    """What a sweeper is told of a job: one of its scores; None where there is none, or none that is a number."""
    value = scores.get(optimized_metric)
    return value if value is not None and math.isfinite(value) else None


def _starts_processes(trainer: DictConfig) -> bool:
    return trainer.devices not in (1, "1") or trainer.get("num_nodes", 1) != 1 or trainer.strategy == "ddp_spawn"
