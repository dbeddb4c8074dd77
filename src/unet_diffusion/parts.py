"""Building the parts that a config names."""

import inspect
import re
from typing import Any

import hydra
from hydra.errors import InstantiationException
from lightning.pytorch.callbacks import Callback
from lightning.pytorch.loggers import Logger
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException
from torch import nn

from unet_diffusion.data.datamodule import ImageDataModule
from unet_diffusion.diffusion.denoiser import Denoiser
from unet_diffusion.diffusion.levels import Levels
from unet_diffusion.diffusion.predictions import Prediction
from unet_diffusion.diffusion.schedules import Schedule
from unet_diffusion.diffusion.weightings import Weighting
from unet_diffusion.errors import UserError, first_line
from unet_diffusion.samplers.base import Sampler
from unet_diffusion.training.lr_schedules import LRSchedule

KINDS: dict[str, type] = {
    "data": ImageDataModule,
    "model": nn.Module,
    "noise": Levels,
    "schedule": Schedule,
    "prediction": Prediction,
    "weighting": Weighting,
    "sampler": Sampler,
    "lr_schedule": LRSchedule,
    "averaging": Callback,
    "callbacks": Callback,
    "logger": Logger,
}
"""What each part, or each of a group's, must turn out to be; a group that is not listed may be anything."""


def build(cfg: DictConfig, key: str, **extra: Any) -> Any:
    """The object that a config describes at `key` by `_target_` and arguments.

    Args:
        cfg: the whole config.
        key: a group, or a dotted path such as `callbacks.pictures`.
        extra: arguments that no config can hold.

    Raises:
        UserError: the object's own checks refuse an argument, it takes no such argument, or it is not what belongs there.
    """
    node = OmegaConf.select(cfg, key)
    try:
        built = hydra.utils.instantiate(node, _convert_="all", **extra)
    except InstantiationException as error:
        cause = error.__cause__
        if isinstance(cause, UserError):
            raise cause from error
        if isinstance(cause, ValueError):
            raise UserError(_with_full_key(first_line(cause), cfg, key)) from error
        if isinstance(cause, TypeError):
            raise UserError(f"{key}: {first_line(cause)}; {_taken_by(node)}") from error
        raise UserError(f"{key}: {' '.join(str(cause or error).split())}") from error
    except (OmegaConfBaseException, TypeError) as error:  # a type error of the object's own would have been wrapped above
        if "_partial_" in str(error):
            raise UserError(f"{key}._partial_ must be true or false") from error
        raise UserError(f"{key}: {first_line(error)}") from error
    kind = KINDS.get(key.partition(".")[0], object)
    if not isinstance(built, kind):
        found = "is empty" if built is None else f"describes a {type(built).__name__}"
        raise UserError(f"{key} {found}, where a {kind.__name__} belongs: choose another {key}=...")
    return built


def build_denoiser(cfg: DictConfig) -> Denoiser:
    """The network of `model` under the `schedule`, `prediction` and `weighting` of a config, with fresh weights.

    Raises:
        UserError: a part refuses its arguments, or they do not fit together.
    """
    net, schedule, prediction, weighting = (build(cfg, part) for part in ("model", "schedule", "prediction", "weighting"))
    try:
        return Denoiser(net, schedule, prediction, weighting)
    except ValueError as error:
        raise UserError(first_line(error)) from error


def build_datamodule(cfg: DictConfig) -> ImageDataModule:
    """The data module of a config, its images opened (and resized and cached where that was not yet done)."""
    if not str(cfg.get("cache_dir", "-")):
        raise UserError("cache_dir is empty (is UNET_DIFFUSION_CACHE set to nothing?): name a folder for resized images")
    datamodule: ImageDataModule = build(cfg, "data")
    datamodule.setup()
    return datamodule


def _with_full_key(message: str, cfg: DictConfig, part: str) -> str:
    """Our classes name the argument first (`percent=30 must be ...`); this puts the key that the user would type in its place.

    Where the config fills the argument from another key (`image_size: ${data.image_size}`), that one is named.
    """
    argument = message.partition("=")[0]
    raw = OmegaConf.to_container(OmegaConf.select(cfg, part), resolve=False)
    value = raw.get(argument) if isinstance(raw, dict) else None
    reference = re.fullmatch(r"\$\{([\w.]+)\}", str(value))
    key = reference.group(1) if reference else f"{part}.{argument}"
    return re.sub(rf"(^|try ){re.escape(argument)}=", rf"\1{key}=", message)


def _taken_by(node: DictConfig) -> str:
    target = hydra.utils.get_object(OmegaConf.select(node, "_target_"))
    names = [name for name in inspect.signature(target).parameters if name != "self"]
    return f"it takes {', '.join(names) or 'no keys'}"
