"""A training as a job of Hydra's: where its run goes, also in a sweep and for the processes of DDP."""

import os
import re
from pathlib import Path

from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig, OmegaConf

from unet_diffusion.cli import SWEEP_DIR, is_sweep_job
from unet_diffusion.errors import UserError
from unet_diffusion.paths import named_path
from unet_diffusion.runs import unique_name

RUN_PATH = "UNET_DIFFUSION_RUN_PATH"
"""Environment variable that tells the processes that DDP starts which folder the first one made."""


def planned_job(cfg: DictConfig) -> tuple[Path, list[str]]:
    """Where the run of this Hydra job goes, and what was typed for it; notes the choice made in each group in `cfg.choices`.

    The place is `<output_dir>/<name>/<time>-<id>`, or a numbered folder in the sweep's.
    """
    job = HydraConfig.get()
    typed = list(job.overrides.task)
    if not re.fullmatch(r"\w[\w.-]*(/\w[\w.-]*)*", str(cfg.name)):
        raise UserError(f"name={cfg.name} must be made of letters, digits, '.', '_' and '-', with '/' between folders")
    cfg.choices = {group: name for group, name in sorted(job.runtime.choices.items()) if "/" not in group and name}
    if int(os.environ.get("LOCAL_RANK", 0)) > 0 and RUN_PATH in os.environ:
        return Path(os.environ[RUN_PATH]), typed
    if not is_sweep_job():
        return named_path("output_dir", cfg.output_dir).absolute() / str(cfg.name) / unique_name(), typed
    if str(cfg.trainer.strategy).startswith("ddp") and cfg.trainer.devices != 1:
        raise UserError(
            "accelerator=ddp does not go with -m, as each of its processes would start the sweep again: "
            "run its jobs one at a time, without -m"
        )
    folder = Path(os.environ[SWEEP_DIR])
    constant = OmegaConf.load(folder / "multirun.yaml").hydra.overrides.task
    words = "_".join(override for override in typed if override not in constant)
    words = "".join(c if c.isalnum() or c in "._-" else "-" for c in words)
    return folder / f"{job.job.num:03d}-{words[:80]}".rstrip("-"), typed
