"""Trainings in several processes, whether Lightning starts them or torchrun or Slurm."""

import lightning as L
from lightning.fabric.plugins.environments.slurm import SLURMEnvironment
from lightning.fabric.plugins.environments.torchelastic import TorchElasticEnvironment

from unet_diffusion.data.datamodule import ImageDataModule
from unet_diffusion.errors import UserError


def started_from_outside() -> int | None:
    """How many processes torchrun or Slurm (srun) started for this job; None where neither did."""
    for environment in (TorchElasticEnvironment, SLURMEnvironment):
        if environment.detect():
            return environment().world_size()
    return None


def check_started(trainer: L.Trainer, started: int) -> None:
    """Refuses a Trainer that is not for as many processes as were started; each would train by itself, or wait for ever.

    Raises:
        UserError: says what to type.
    """
    asked = trainer.num_devices * trainer.num_nodes
    if asked != started:
        more = f"add accelerator=ddp trainer.devices={started} (or how many a node has, and +trainer.num_nodes=)"
        raise UserError(
            f"torchrun or Slurm started {started} processes, but trainer.devices and trainer.num_nodes ask for {asked}: "
            f"{more if started > 1 else 'start as many, or try trainer.devices=1'}"
        )


def check_batch(trainer: L.Trainer, datamodule: ImageDataModule) -> None:
    """Refuses batches that all processes together cannot fill.

    Raises:
        UserError: says what to type.
    """
    processes, images = trainer.num_devices * trainer.num_nodes, len(datamodule.splits["train"])
    if datamodule.batch_size * processes > images:
        raise UserError(
            f"data.batch_size={datamodule.batch_size} in each of {processes} processes is more than the {images} training "
            f"images: try data.batch_size={max(1, images // processes // 2)}"
        )
