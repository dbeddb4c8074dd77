"""Which run directory a training uses, and whether it starts there or resumes."""

import io
import os
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from hydra.core.hydra_config import HydraConfig
from hydra.core.override_parser.overrides_parser import OverridesParser
from lightning.fabric.plugins.environments.slurm import SLURMEnvironment
from lightning.fabric.plugins.io.torch_io import TorchCheckpointIO
from lightning.fabric.utilities.rank_zero import rank_zero_only
from omegaconf import DictConfig, OmegaConf
from torch.distributed import is_torchelastic_launched

from unet_diffusion.config import check_targets, choice_or_value, is_sweep_job, moved_root
from unet_diffusion.runs import Run, load_checkpoint, unique_name, write_atomically
from unet_diffusion.training.sweeps import job_directory

RUN_DIR_VARIABLE = "UNET_DIFFUSION_RUN_DIR"
"""Environment variable with the run directory, for the processes that Lightning starts."""
_MAY_CHANGE = ("trainer", "callbacks", "logger", "speed", "debug", "cache_dir")
_TRAINER_GROUPS = {
    "accelerator": ("accelerator", "devices", "strategy"),
    "precision": ("precision",),
}
_NOT_SETTINGS = ("resume=", "run_dir=", "sweep_dir=")


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

    run: Run
    overrides: list[str]  # of the command line
    is_new: bool
    checkpoint: Path | None  # to resume from; None: from the start

    @cached_property
    def first_step(self) -> int | None:
        """Step of the checkpoint, 0 without one; None for a new run."""
        if self.checkpoint is not None:
            return int(load_checkpoint(self.checkpoint)["global_step"])
        return None if self.is_new else 0


def plan_training(cfg: DictConfig) -> TrainingPlan:
    """Selects the run directory and the config to train with.

    `resume` names an existing run. With `run_dir`, and in a sweep, the directory follows from the
    command: the same command resumes its run. Otherwise a new directory is used,
    <output_dir>/<name>/<time>-<id>.
    """
    overrides, cfg.choices = [], {}
    if HydraConfig.initialized():
        job = HydraConfig.get()
        overrides = [o for o in job.overrides.task if not o.startswith(_NOT_SETTINGS)]
        cfg.choices = {k: v for k, v in job.runtime.choices.items() if "/" not in k and v}
    cfg.name = cfg.name or cfg.choices.get("model", "run")
    if cfg.resume is not None:
        if is_sweep_job() or cfg.run_dir is not None:
            raise ValueError(f"resume={cfg.resume}: cannot be combined with -m or run_dir.")
        run = Run.open(str(cfg.resume), key="resume")
        if run.saved_model:
            raise ValueError(f"resume={cfg.resume}: has no checkpoint. Use init_from.")
        config = _resumed_config(run, cfg, overrides)
        run = Run(run.path, config, run.selected_checkpoint)
        return TrainingPlan(run, overrides, False, _latest_checkpoint(run))
    path = _select_directory(cfg).absolute()
    if (path / "config.yaml").is_file():
        run = Run.open(path, key="run_dir")
        if RUN_DIR_VARIABLE not in os.environ and run.overrides != overrides:
            raise ValueError(
                f"run_dir={path}: contains a run with other overrides (see its overrides.yaml). "
                f"Use another directory, or resume={path}."
            )
        _prepare_resume(run, cfg)
        return TrainingPlan(run, [], False, _latest_checkpoint(run))
    is_empty = not path.exists() or (path.is_dir() and set(path.iterdir()) <= {path / ".lock"})
    if rank_zero_only.rank == 0 and not is_empty:  # type: ignore[attr-defined]
        raise ValueError(f"run_dir={path}: exists and is not a run directory.")
    return TrainingPlan(Run(path, cfg), overrides, True, None)


def _select_directory(cfg: DictConfig) -> Path:
    if RUN_DIR_VARIABLE in os.environ:
        return Path(os.environ[RUN_DIR_VARIABLE])
    if cfg.run_dir is not None:
        if is_sweep_job():
            raise ValueError(f"run_dir={cfg.run_dir}: cannot be combined with -m. Use sweep_dir.")
        return Path(str(cfg.run_dir)).expanduser()
    if is_sweep_job():
        if cfg.trainer.devices != 1 and not SLURMEnvironment.detect():
            raise ValueError(f"trainer.devices={cfg.trainer.devices}: expected 1 in a sweep (-m).")
        return job_directory()
    slurm_tasks = SLURMEnvironment().world_size() if SLURMEnvironment.detect() else 1
    if slurm_tasks > 1 or is_torchelastic_launched():
        raise ValueError("run_dir: required with torchrun or several Slurm tasks, which share it.")
    return Path(str(cfg.output_dir)).expanduser() / str(cfg.name) / unique_name()


def _latest_checkpoint(run: Run) -> Path | None:
    directory = run.path / "checkpoints"
    candidates = [run.selected_checkpoint, directory / "last.ckpt", directory / "best.ckpt"]
    return next((file for file in candidates if file is not None and file.is_file()), None)


def _resumed_config(run: Run, cfg: DictConfig, overrides: list[str]) -> DictConfig:
    """The config of the run with the changes that a resumed run may have."""
    _prepare_resume(run, cfg)
    config = run.config.copy()
    for override in OverridesParser.create().parse_overrides(overrides):
        key = override.key_or_group
        old, new = choice_or_value(config, key), choice_or_value(cfg, key)
        if key in _TRAINER_GROUPS:
            for name in _TRAINER_GROUPS[key]:
                OmegaConf.update(config, f"trainer.{name}", cfg.trainer[name], force_add=True)
        elif key.split(".")[0] in _MAY_CHANGE or key == "data.root":
            value = OmegaConf.select(cfg, key)
            OmegaConf.update(config, key, value, merge=False, force_add=True)
        elif override.input_line not in run.overrides and new != old:
            raise ValueError(
                f"resume={run.path}: the run has {key}={old}. A resumed run can change trainer, "
                "callbacks, logger, speed, data.root, accelerator and precision only."
            )
        if key in cfg.choices:
            config.choices[key] = cfg.choices[key]
    for kind, node in (config.logger or {}).items():  # continues in the runs of the loggers
        for name, old in (run.config.logger.get(kind) or {}).items():
            if node and name in node and node[name] is None:
                node[name] = old
    return config


def _prepare_resume(run: Run, cfg: DictConfig) -> None:
    """Checks a config of unknown origin, and sets the cache of this command in it."""
    config: dict[str, Any] = OmegaConf.to_container(run.config)  # type: ignore[assignment]
    check_targets(config, f"resume={run.path}", trusted=cfg)  # trusts the classes of cfg
    run.config.data.root = moved_root(run.config.data, cfg.cache_dir)
    run.config.cache_dir = cfg.cache_dir
    run.config.data.cache_dir = cfg.data.cache_dir
