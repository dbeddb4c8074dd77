"""A training as a job of Hydra's: where its run goes, also in a sweep and for the processes of DDP, and what it is worth."""

import math
import os
import re
from collections.abc import Mapping
from pathlib import Path

from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig

from unet_diffusion.checks import shortened
from unet_diffusion.errors import UserError
from unet_diffusion.evaluation.records import final_scores
from unet_diffusion.paths import named_path
from unet_diffusion.runs import is_unbegun, unique_name
from unet_diffusion.sweeps import is_finished, is_sweep_job, job_folder, typed_for
from unet_diffusion.training.limits import check_sections

RUN_PATH = "UNET_DIFFUSION_RUN_PATH"
"""Environment variable that tells the processes that DDP starts which folder the first one made."""
_LONGEST_NAME = 100


def planned_job(cfg: DictConfig) -> tuple[Path, list[str]]:
    """Where the run of this Hydra job goes, and what was typed for it; notes the choice made in each group in `cfg.choices`.

    The place is `<output_dir>/<name>/<time>-<id>`, or `run_dir`, or a numbered folder in the sweep's. There is a run in it
    already where the same command is given again; one that did not come to its end is noted in `cfg.resume`.

    Raises:
        UserError: what was typed does not go together, or there is something else in the folder.
    """
    check_sections(cfg)
    job = HydraConfig.get()
    typed = [word for word in job.overrides.task if not word.startswith(("sweep_dir=", "run_dir="))]  # where, not what
    run_dir, cfg.run_dir, cfg.sweep_dir = cfg.run_dir, None, None
    if len(str(cfg.name)) > _LONGEST_NAME or not re.fullmatch(r"\w[\w.-]*(/\w[\w.-]*)*", str(cfg.name)):
        raise UserError(
            f"name={shortened(cfg.name)} must be made of at most {_LONGEST_NAME} letters, digits, '.', '_' and '-', with '/' "
            f"between folders"
        )
    cfg.choices = {group: name for group, name in sorted(job.runtime.choices.items()) if "/" not in group and name}
    if cfg.resume is not None and is_sweep_job():
        raise UserError(f"resume={cfg.resume} goes on with a single run: leave out -m")
    if run_dir is not None and is_sweep_job():
        raise UserError(f"run_dir={run_dir} is the folder of a single run: name that of the sweep by sweep_dir=")
    if run_dir is not None and cfg.resume is not None:
        raise UserError(
            f"run_dir={run_dir} does not go with resume={cfg.resume}, which goes on in its own folder: leave one out"
        )
    if int(os.environ.get("LOCAL_RANK", 0)) > 0 and RUN_PATH in os.environ:
        return Path(os.environ[RUN_PATH]), typed
    if run_dir is not None:
        return _asked_folder(cfg, str(run_dir), typed), typed
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
    return path, typed


def _asked_folder(cfg: DictConfig, run_dir: str, typed: list[str]) -> Path:
    """The folder that was asked for; a run of the same command in it is noted in `cfg.resume`.

    Raises:
        UserError: there is something else in it.
    """
    path = named_path("run_dir", run_dir).absolute()
    if (path / "config.yaml").is_file():
        if typed_for(path) != sorted(typed):
            raise UserError(
                f"run_dir={run_dir} holds a run of other words (see its overrides.yaml): name another folder, or go on with "
                f"that run by resume={run_dir}"
            )
        cfg.resume = str(path)
    elif path.exists() and not is_unbegun(path):
        raise UserError(f"run_dir={run_dir} is there already and is no run: name a new folder")
    elif Path.cwd().is_relative_to(path.resolve()):
        raise UserError(f"run_dir={run_dir} is where you are: name a new folder")
    return path


def finished_scores(path: Path) -> dict[str, float] | None:
    """The final scores of the run in this folder; None where it has none yet."""
    if not is_finished(path):
        return None
    print(f"{path.name} is finished: skipped.")
    return final_scores(path)


def worth(scores: Mapping[str, float], optimized_metric: str) -> float | None:
    """What a sweeper is told of a job: one of its scores; None where there is none, or none that is a number."""
    value = scores.get(optimized_metric)
    return value if value is not None and math.isfinite(value) else None


def _starts_processes(trainer: DictConfig) -> bool:
    return trainer.devices not in (1, "1") or trainer.get("num_nodes", 1) != 1 or trainer.strategy == "ddp_spawn"
