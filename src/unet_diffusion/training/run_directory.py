"""Which run directory a training uses, and whether it starts there or resumes."""

import io
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from filelock import Timeout
from lightning.fabric.plugins.environments.slurm import SLURMEnvironment
from lightning.fabric.plugins.io.torch_io import TorchCheckpointIO
from lightning.fabric.utilities.rank_zero import rank_zero_only
from torch.distributed import is_torchelastic_launched

from unet_diffusion.data.cache import locked
from unet_diffusion.errors import UserError
from unet_diffusion.experiment.locations import unique_name
from unet_diffusion.experiment.resume import check_overrides, resumed_config
from unet_diffusion.experiment.saved import validate_config
from unet_diffusion.experiment.schema import Recorded, TrainConfig
from unet_diffusion.runs.checkpoints import load_checkpoint
from unet_diffusion.runs.files import write_atomically
from unet_diffusion.runs.run import Run, locate, saved_weights

RUN_DIR_VARIABLE = "UNET_DIFFUSION_RUN_DIR"
"""Environment variable with the run directory, for the processes that Lightning starts."""
_LOCK = ".lock"


class AtomicCheckpointIO(TorchCheckpointIO):
    """Saves completely or not at all; Lightning's class copies a file, which can fail halfway."""

    def save_checkpoint(
        self, checkpoint: dict[str, Any], path: str | Path, storage_options: Any = None
    ) -> None:
        buffer = io.BytesIO()
        torch.save(checkpoint, buffer)
        write_atomically(Path(path), buffer.getvalue())


@dataclass(frozen=True)
class TrainingPlan:
    """What `train` does: a new run, or an existing one from a checkpoint."""

    run_dir: Path
    config: TrainConfig
    recorded: Recorded
    run: Run | None = None  # that is resumed
    checkpoint: Path | None = None  # to resume from; None: from the start

    @cached_property
    def first_step(self) -> int | None:
        """Step of the checkpoint, 0 without one; None for a new run."""
        if self.checkpoint is not None:
            step = load_checkpoint(self.checkpoint).get("global_step")
            if not isinstance(step, int):
                raise UserError(f"{self.checkpoint}: not a checkpoint of a training.")
            return step
        return None if self.run is None else 0

    @property
    def finished_score(self) -> float | None:
        """The score of a run that is finished, and whose limits do not change; else None."""
        changes_limit = any(each.startswith("trainer.max_") for each in self.config.overrides)
        metrics = None if self.run is None else self.run.metrics
        if metrics is None or (changes_limit and self.config.resume):
            return None
        if (name := self.config.optimized_metric) not in metrics.scores:
            known = ", ".join(metrics.scores)
            raise UserError(f"optimized_metric={name}: not in metrics.json, which has {known}.")
        return metrics.scores[name]


@contextmanager
def open_run_directory(config: TrainConfig) -> Iterator[TrainingPlan]:
    """Selects, creates and locks the run directory, and plans the training in it.

    `resume` names an existing run. With `run_dir`, and in a sweep, the directory follows from the
    command: the same command resumes its run. Otherwise a new directory is used,
    <output_dir>/<name>/<time>-<id>. A new directory without a checkpoint is removed after an error.
    """
    path = _select_directory(config).absolute()
    is_first = rank_zero_only.rank == 0  # type: ignore[attr-defined]
    if not is_first or config.trainer.fast_dev_run:
        yield _plan(path, config)
        return
    if not _is_run_or_empty(path):
        raise UserError(f"run_dir={path}: exists and is not a run directory.")
    new_parents = [parent for parent in path.parents if not parent.exists()]
    path.mkdir(parents=True, exist_ok=True)
    try:
        with locked(path / _LOCK, timeout=0):
            for unfinished in path.glob("checkpoints/.*.ckpt-*"):  # of a killed process
                unfinished.unlink()
            yield from _planned(path, config, new_parents)
    except Timeout as error:
        raise UserError(f"{path}: another process is training in this directory.") from error


def _planned(path: Path, config: TrainConfig, new_parents: list[Path]) -> Iterator[TrainingPlan]:
    plan = None
    os.environ[RUN_DIR_VARIABLE] = str(path)
    try:
        plan = _plan(path, config)
        yield plan
    except BaseException:
        is_new = plan is not None and plan.run is None
        if is_new and not (path / "checkpoints").exists():
            shutil.rmtree(path, ignore_errors=True)
            with suppress(OSError):  # not empty
                for parent in new_parents:
                    parent.rmdir()
        raise
    finally:
        os.environ.pop(RUN_DIR_VARIABLE, None)


def _is_run_or_empty(path: Path) -> bool:
    """Whether a run can be in the directory; one that was killed at its start has a lock only."""
    if not path.exists():
        return True
    ours = any((path / name).is_file() for name in ("config.yaml", _LOCK))
    return path.is_dir() and (ours or not any(path.iterdir()))


def _plan(path: Path, config: TrainConfig) -> TrainingPlan:
    """What to do in the directory, which this process has locked."""
    if config.resume is None and not (path / "config.yaml").is_file():
        return TrainingPlan(path, config, Recorded())
    run = Run.open(config.resume or path, key="resume" if config.resume else "run_dir")
    saved = validate_config(TrainConfig, run.values, run.path / "config.yaml")
    is_first = rank_zero_only.rank == 0  # type: ignore[attr-defined]
    if config.resume is not None:
        check_overrides(saved, run.overrides, config)
    elif is_first and run.overrides != config.overrides:
        raise UserError(
            f"run_dir={path}: contains a run with other overrides (see its overrides.yaml). "
            f"Use another directory, or resume={path}."
        )
    merged = resumed_config(saved, config)
    return TrainingPlan(run.path, merged, saved.recorded, run, _latest_checkpoint(run))


def _select_directory(config: TrainConfig) -> Path:
    in_sweep = config.sweep_job_dir is not None
    if config.resume is not None:
        if in_sweep or config.run_dir is not None:
            raise UserError(f"resume={config.resume}: cannot be combined with -m or run_dir.")
        directory, _ = locate(config.resume, key="resume")
        if saved_weights(directory):
            raise UserError(f"resume={config.resume}: has no checkpoint. Use init_from.")
        return directory.resolve()
    if RUN_DIR_VARIABLE in os.environ:
        return Path(os.environ[RUN_DIR_VARIABLE])
    devices = (config.trainer.model_extra or {}).get("devices", 1)
    if config.sweep_job_dir is not None:
        if config.run_dir is not None:
            raise UserError(f"run_dir={config.run_dir}: cannot be combined with -m. Use sweep_dir.")
        if devices != 1 and not SLURMEnvironment.detect():
            raise UserError(f"trainer.devices={devices}: expected 1 in a sweep (-m).")
        return config.sweep_job_dir
    if config.run_dir is not None:
        return Path(config.run_dir).expanduser()
    slurm_tasks = SLURMEnvironment().world_size() if SLURMEnvironment.detect() else 1
    if slurm_tasks > 1 or is_torchelastic_launched():
        raise UserError("run_dir: required with torchrun or several Slurm tasks, which share it.")
    return Path(config.output_dir).expanduser() / config.name / unique_name()


def _latest_checkpoint(run: Run) -> Path | None:
    directory = run.path / "checkpoints"
    candidates = [run.selected_checkpoint, directory / "last.ckpt", directory / "best.ckpt"]
    return next((file for file in candidates if file is not None and file.is_file()), None)
