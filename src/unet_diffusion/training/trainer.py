"""The Trainer of an experiment, and the settings that make it fast."""

import logging
import os
import sys
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import lightning as L
import torch
from lightning.fabric.plugins.environments.slurm import SLURMEnvironment
from lightning.pytorch.callbacks import Callback, LearningRateMonitor, ProgressBar
from torch.distributed import is_torchelastic_launched

from unet_diffusion.errors import UserError
from unet_diffusion.experiment.build import Experiment
from unet_diffusion.hardware import prefers_channels_last, set_memory_format
from unet_diffusion.training.callbacks import SaveLoggers, ValidateAtEnd
from unet_diffusion.training.module import DenoisingModule
from unet_diffusion.training.run_directory import AtomicCheckpointIO


def build_trainer(
    experiment: Experiment, run_dir: Path, callbacks: Sequence[Callback]
) -> L.Trainer:
    """The Trainer with the callbacks and loggers of an experiment, and further callbacks."""
    callbacks = [*experiment.callbacks.values(), ValidateAtEnd(), SaveLoggers(), *callbacks]
    if not experiment.loggers:
        callbacks = [each for each in callbacks if not isinstance(each, LearningRateMonitor)]
    for each in callbacks:
        if isinstance(each, ProgressBar) and not sys.stdout.isatty():
            each.disable()  # thousands of lines in a file
    arguments = dict(experiment.trainer_arguments)
    del arguments["max_time"]  # that of a Timer
    # In optimizer steps here, in batches for Lightning.
    arguments["val_check_interval"] *= arguments["accumulate_grad_batches"]
    # Lightning's Slurm checkpoint would take precedence over later ones.
    plugins: list[Any] = [AtomicCheckpointIO()]
    if SLURMEnvironment.detect():
        plugins.append(SLURMEnvironment(auto_requeue=False))
    try:
        trainer = L.Trainer(
            **arguments,
            callbacks=callbacks,
            logger=list(experiment.loggers.values()),
            plugins=plugins,
            default_root_dir=run_dir,
            use_distributed_sampler=False,  # the data module has its own
        )
    except (TypeError, ValueError, RuntimeError) as error:
        raise UserError(f"trainer: {error}") from error
    num_processes = trainer.num_devices * trainer.num_nodes
    if is_torchelastic_launched() and num_processes != int(os.environ["WORLD_SIZE"]):
        raise UserError(
            f"trainer.devices={arguments['devices']}: torchrun started "
            f"{os.environ['WORLD_SIZE']} processes. Use accelerator=ddp with as many "
            f"trainer.devices."
        )
    return trainer


def apply_speed_settings(
    experiment: Experiment, module: DenoisingModule, device: torch.device
) -> None:
    """Applies the `speed` section: memory format, compilation, and where the images are stored."""
    cuda = device.type == "cuda"
    images = experiment.datamodule.splits["train"]
    auto = {
        "channels_last": prefers_channels_last(device),
        "compile": cuda,
        "images_on_device": cuda
        and images.cached.images.nbytes < torch.cuda.mem_get_info(device)[0] / 2,
    }
    settings = experiment.speed.model_dump()
    speed = {key: auto[key] if settings[key] == "auto" else settings[key] for key in auto}
    if speed["compile"] and (reason := _compiler_error(device)):
        print(f"speed.compile={settings['compile']}: not possible, trained without it ({reason}).")
        speed["compile"] = False
    shown = ", ".join(f"{key} {str(value).lower()}" for key, value in speed.items())
    print(f"{device.type}: precision {experiment.recorded.precision}, {shown}")
    set_memory_format(module.denoiser.net, speed["channels_last"])
    if module.ema_denoiser is not None:
        set_memory_format(module.ema_denoiser.net, speed["channels_last"])
    if speed["compile"]:
        # Only the training loss: validation, previews and checkpoints use the plain module.
        # CUDA graphs overwrite the gradients of the previous batch, so these cannot accumulate.
        accumulates = experiment.config.trainer.accumulate_grad_batches > 1
        mode = "reduce-overhead" if cuda and not accumulates else "default"
        denoiser = module.denoiser
        denoiser.loss = torch.compile(denoiser.loss, dynamic=False, mode=mode)  # type: ignore[method-assign]
    if speed["images_on_device"]:
        images.to_device(device)


def _compiler_error(device: torch.device) -> str | None:
    """Why torch.compile does not work, such as the lack of a C++ compiler."""
    try:
        torch.compile(torch.square)(torch.ones(8, device=device))
    except Exception as error:  # noqa: BLE001 - of torch, Triton, or a subprocess
        return str(error).strip().partition("\n")[0]
    return None


def ignore_warnings() -> None:
    """Silences warnings about deliberate choices."""
    for message in (
        r".*does not have many workers.*",  # batches are one indexing operation
        r".*Checkpoint directory .* exists and is not empty.*",
        r".*Experiment logs directory .* exists and is not empty.*",
        r".*ended before the epoch ended and your dataloader is not resumable.*",  # its sampler is
        r".*The number of training batches .* is smaller than the logging interval.*",
        r"Precision .* is not supported by the model summary.*",
        r".*`torch.jit.trace(_method)?` is deprecated.*",  # TensorBoard's graph
        r".*`isinstance\(treespec, LeafSpec\)` is deprecated.*",
    ):
        warnings.filterwarnings("ignore", message)
    logging.getLogger("lightning.pytorch.utilities.rank_zero").setLevel(logging.WARNING)
