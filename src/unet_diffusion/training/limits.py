"""Whether the Trainer's numbers can work; Lightning takes some that it cannot run."""

import re

from omegaconf import DictConfig, OmegaConf

from unet_diffusion.checks import number, shortened, whole_number
from unet_diffusion.errors import UserError


def check_sections(cfg: DictConfig) -> None:
    """Refuses a value where the keys of a section belong.

    Raises:
        UserError: there is one; names the section.
    """
    for key, without in (("trainer", False), ("speed", False), ("callbacks", True), ("logger", True)):
        value = cfg.get(key)
        if not (OmegaConf.is_dict(value) or (without and value is None)):
            raise UserError(
                f"{key}={shortened(value)} takes the place of all its keys: change single ones ({key}.<key>=...; `--cfg job -p "
                f"{key}` lists them)"
            )


def check_limits(trainer: DictConfig) -> None:
    """Refuses what Lightning would take, but could not run or would never end.

    Raises:
        ValueError: a value out of its range; names the key.
    """
    for key in ("accumulate_grad_batches", "log_every_n_steps"):
        whole_number(f"trainer.{key}", trainer[key], at_least=1)
    if not isinstance(trainer.get("sync_batchnorm", True), bool):
        raise ValueError(f"trainer.sync_batchnorm={shortened(trainer.sync_batchnorm)} must be true or false")
    if not isinstance(trainer.fast_dev_run, bool):
        whole_number("trainer.fast_dev_run", trainer.fast_dev_run, at_least=1)
    for key in ("max_steps", "max_epochs"):
        if whole_number(f"trainer.{key}", trainer[key], at_least=-1) == 0:
            raise ValueError(f"trainer.{key}=0 would train nothing: give 1 or more, or -1 for no limit")
    if trainer.max_time is not None and not re.fullmatch(r"\d+(:\d\d){3}", str(trainer.max_time)):
        raise ValueError(
            f"trainer.max_time={shortened(trainer.max_time)} must be DD:HH:MM:SS, such as 00:00:10:00 for ten minutes"
        )
    if not int(re.sub(r"\D", "", str(trainer.max_time or "1"))):
        raise ValueError(f"trainer.max_time={shortened(trainer.max_time)} would train nothing")
    if trainer.max_time is None and trainer.max_steps == -1 and trainer.max_epochs == -1:
        raise ValueError("trainer.max_steps=-1 leaves no limit at all: give trainer.max_steps, max_epochs or max_time")
    interval = trainer.val_check_interval
    if not (isinstance(interval, float) and 0 < interval <= 1):
        whole_number("trainer.val_check_interval", interval, at_least=1)
    clip = trainer.gradient_clip_val
    if clip is not None and number("trainer.gradient_clip_val", clip, low=0) == 0:
        raise ValueError("trainer.gradient_clip_val=0 would stop all learning: give a norm above 0, or null for no clipping")
