"""The LightningModule and Lightning's Trainer of a config, and what they refuse in the user's words."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import lightning as L
import torch
from lightning.fabric.plugins.environments.slurm import SLURMEnvironment
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch.callbacks import Callback, ModelCheckpoint
from lightning.pytorch.loggers import Logger
from omegaconf import DictConfig, OmegaConf

from unet_diffusion.checks import number, shortened
from unet_diffusion.diffusion.guidance import check_guidance
from unet_diffusion.errors import UserError, first_line
from unet_diffusion.parts import build, build_denoiser
from unet_diffusion.training.checkpoints import WholeCheckpoints
from unet_diffusion.training.module import DenoisingModule
from unet_diffusion.training.survival import EndInOrder, FlushLogs, PlaceInEpoch, RandomState, TimeTrained, UnfinishedStep
from unet_diffusion.training.sync_norm import SyncNorms

LOSS = "val/loss"


def build_module(cfg: DictConfig, image_size: tuple[int, int], overrides: Sequence[str] = ()) -> DenoisingModule:
    """The LightningModule of a config.

    Raises:
        UserError: a part refuses its arguments. The optimizer and the network are tried, so that a learning rate or an image
            size that cannot work is found here.
    """
    parts = {"levels": "noise", "optimizer": "optimizer", "lr_schedule": "lr_schedule"}
    try:
        for key, value in cfg.optimizer.items():
            if isinstance(value, float):
                number(f"optimizer.{key}", value)  # PyTorch takes infinities
        module = DenoisingModule(
            denoiser=build_denoiser(cfg),
            image_shape=(cfg.data.channels, *image_size),
            noise_seed=cfg.noise_seed,
            label_dropout=cfg.label_dropout,
            **{argument: build(cfg, key) for argument, key in parts.items()},
        )
        known = module.denoiser.num_classes
        check_guidance(number("guidance", cfg.guidance, low=0), known, cfg.label_dropout)
        if 0 < known < cfg.num_classes:
            raise ValueError(
                f"model.num_classes={known} is less than the data's {cfg.num_classes}: try '${{num_classes}}', or 0"
            )
    except ValueError as error:
        raise UserError(first_line(error)) from error
    try:
        module.optimizer(module.parameters())
    except (TypeError, ValueError) as error:
        raise _refusal("optimizer", overrides, error) from error
    image = torch.zeros(1, cfg.data.channels, *image_size)
    shape = "x".join(map(str, image.shape[1:]))
    try:
        with torch.inference_mode():
            answer = module.eval()(image, image.new_ones(1))
    except (RuntimeError, TypeError) as error:
        raise UserError(f"model: the network does not take the data's {shape} images ({first_line(error)})") from error
    if answer.shape != image.shape:
        got = "x".join(map(str, answer.shape[1:]))
        raise UserError(f"model: the network answers {got} to {shape} images; its answer must have the shape of its input")
    module.train()
    return module


def build_trainer(cfg: DictConfig, path: Path, overrides: Sequence[str] = (), done: int | None = None) -> L.Trainer:
    """Lightning's Trainer with the config's loggers and callbacks, all writing below `path`; writes nothing yet.

    Args:
        cfg: the whole config.
        path: the run's folder.
        overrides: what the user typed.
        done: steps that a run has begun that goes on; what was logged later than those is void.

    Raises:
        UserError: an argument is refused.
    """
    build(cfg, "sampler")  # its mistakes are said by its own name here, not by that of the callback that draws with it
    loggers: list[Logger] = []
    for name, node in (cfg.get("logger") or {}).items():
        void = {"purge_step": done} if done is not None and str(node._target_).endswith("TensorBoardLogger") else {}
        loggers.append(build(cfg, f"logger.{name}", save_dir=str(path), **void))
    callbacks: list[Callback] = [build(cfg, f"callbacks.{name}") for name in cfg.get("callbacks") or ()]
    callbacks += [TimeTrained(), RandomState(), PlaceInEpoch(), UnfinishedStep(), FlushLogs()]
    if cfg.averaging:
        # after others: what they do at the end of a validation is done with the average
        callbacks.append(build(cfg, "averaging"))
    callbacks.append(EndInOrder(path / "checkpoints" / "last.ckpt"))  # what it saves has the step's average
    arguments: dict[str, Any] = OmegaConf.to_container(cfg.trainer, resolve=True)  # type: ignore[assignment]
    synced = arguments.pop("sync_batchnorm", True)
    try:
        trainer: L.Trainer = L.Trainer(
            **arguments,
            logger=loggers,
            callbacks=callbacks,
            default_root_dir=path,
            plugins=[WholeCheckpoints(), *([SyncNorms()] if synced else [])],
            use_distributed_sampler=False,  # the data module shares out the images itself
        )
    except (MisconfigurationException, TypeError, ValueError, AttributeError, RuntimeError) as error:
        raise _refusal("trainer", overrides, error) from error
    environment = trainer._accelerator_connector.cluster_environment
    if isinstance(environment, SLURMEnvironment):
        # the checkpoint that it saves would come before any later one; for a requeued job there is run_dir
        environment.auto_requeue = False
    return trainer


def check_metric(name: str, trainer: L.Trainer, module: DenoisingModule) -> None:
    """Refuses an `optimized_metric` that will not be among the final scores, and a `monitor` that is not logged."""
    saved = trainer.checkpoint_callback
    monitor = saved.monitor if isinstance(saved, ModelCheckpoint) and saved.monitor is not None else LOSS
    logged = [LOSS, *(str(metric) for metric in module.val_metrics.keys(keep_base=False)), "train/loss"]
    if monitor not in logged and not str(monitor).startswith("val_by_level/"):
        raise UserError(f"callbacks.checkpoint.monitor={shortened(monitor)} is not logged: choose one of {', '.join(logged)}")
    if isinstance(saved, ModelCheckpoint) and saved.save_top_k != 1 and "{" not in str(saved.filename):
        raise UserError(
            f"callbacks.checkpoint.save_top_k={shortened(saved.save_top_k)} would keep all in one file: keep 1, or "
            f"name each by its step: callbacks.checkpoint.filename='best-{{step}}'"
        )
    known = [monitor, *(str(metric) for metric in module.test_metrics.keys(keep_base=False))]
    if name not in known:
        raise UserError(f"optimized_metric={name} is none of the final scores: choose one of {', '.join(known)}")


def _refusal(part: str, overrides: Sequence[str], error: Exception) -> UserError:
    """A library's refusal of its arguments, with those that the user typed, as the library does not say which it means."""
    typed = [override for override in overrides if override.lstrip("+~").startswith(f"{part}.")]
    why = "not a value of the right kind" if isinstance(error, TypeError) else first_line(error)
    return UserError(f"{part}: {' '.join(typed) or 'an argument'} is refused ({why}): see `--cfg job -p {part}`")
