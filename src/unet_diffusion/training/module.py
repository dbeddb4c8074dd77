"""The one LightningModule: it wraps a denoiser and the noising loss, and is made of parts."""

from collections.abc import Callable, Iterator
from typing import NamedTuple

import lightning as L
import torch
from lightning.pytorch.utilities.types import OptimizerLRScheduler
from torch import Tensor
from torch.nn import Parameter
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR
from torchmetrics import MeanMetric

from unet_diffusion.checks import whole_number
from unet_diffusion.data.datamodule import Batch
from unet_diffusion.diffusion.denoiser import Denoiser
from unet_diffusion.diffusion.levels import Levels
from unet_diffusion.diffusion.noise import image_noise
from unet_diffusion.evaluation.metrics import LossByLevel, denoising_metrics
from unet_diffusion.shares import Share
from unet_diffusion.training.draws import Draws
from unet_diffusion.training.lr_schedules import LRSchedule, training_progress
from unet_diffusion.training.progress import is_logged


class Seen(NamedTuple):
    """What a training step had before it."""

    loss: Tensor
    """Its loss, a scalar."""
    t: Tensor
    """Its noise levels, (B,)."""


class DenoisingModule(L.LightningModule):
    """Trains a denoiser on noisy images.

    Validation and test meet the same noise every time: it depends on `noise_seed` and on each image's number alone. What is
    logged is that of all processes.

    Args:
        denoiser: what is trained.
        levels: which noise levels training draws.
        image_shape: (C, H, W) of the images.
        optimizer: called with the parameters.
        lr_schedule: factor for the optimizer's learning rate over the training.
        noise_seed: seed of the noise that validation and test use, 0 or more.
        label_dropout: share of the images whose class training does not tell, in [0, 1]; each image by itself.

    Raises:
        ValueError: an argument out of its range.
    """

    def __init__(
        self,
        denoiser: Denoiser,
        levels: Levels,
        image_shape: tuple[int, int, int],
        optimizer: Callable[[Iterator[Parameter]], Optimizer],
        lr_schedule: LRSchedule,
        noise_seed: int = 0,
        label_dropout: float = 0.0,
    ) -> None:
        super().__init__()
        self.denoiser = denoiser
        self.loss = denoiser.loss  # what training asks; may be compiled
        self.levels = levels
        self.optimizer = optimizer
        self.lr_schedule = lr_schedule
        self.noise_seed = whole_number("noise_seed", noise_seed, at_least=0)
        self.last_seen: Seen | None = None
        self.draws = Draws(levels, label_dropout)
        self.val_metrics = denoising_metrics(image_shape[1:], prefix="val/")
        self.test_metrics = denoising_metrics(image_shape[1:], prefix="test/")
        low, high = levels.quantile(torch.tensor([0.0, 1.0])).tolist()
        self.val_by_level = LossByLevel(low, high)
        self.val_loss = MeanMetric(nan_strategy=float("nan"))  # by default it would leave out what is not a number
        self.example_input_array = torch.zeros(1, *image_shape), torch.ones(1)

    def forward(self, xt: Tensor, t: Tensor, label: Tensor | None = None) -> Tensor:
        """The denoiser's guess x0_hat, (B, C, H, W)."""
        x0_hat: Tensor = self.denoiser(xt, t, label)
        return x0_hat

    def on_train_start(self) -> None:
        self.draws.share = Share(self.trainer.world_size, self.trainer.global_rank)
        self.draws.batches = self.trainer.accumulate_grad_batches
        if self.trainer.global_step:
            self._follow_the_schedule()

    def on_train_epoch_start(self) -> None:
        """Not called where a run goes on within an epoch."""
        self.draws.batches = self.trainer.accumulate_grad_batches  # Lightning's GradientAccumulationScheduler changes it

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        t, eps, label = self.draws.for_batch(batch, batch_idx)
        loss = self.loss(batch.x0, eps, t, label)
        self.last_seen = Seen(loss.detach(), t)
        if is_logged(self):  # to log a value costs as much as a convolution
            self.log("train/loss", loss, prog_bar=True, sync_dist=True)
        return loss

    def validation_step(self, batch: Batch, batch_idx: int) -> None:
        if not len(batch.x0):  # the last one of a process can be empty
            return
        eps, t = self.fixed_noise(batch)
        losses, x0_hat = self.denoiser.losses(batch.x0, eps, t, batch.label)
        self.val_loss.update(losses.mean(), len(losses))
        self.val_by_level.update(losses, t)
        self.val_metrics.update(x0_hat.float(), batch.x0)

    def on_validation_epoch_end(self) -> None:
        # metrics that are logged as such add up their sums and counts over all processes, which Lightning's own means do not
        self.log("val/loss", self.val_loss)
        self.log_dict(self.val_metrics)
        self.log_dict(self.val_by_level.compute(), rank_zero_only=True)
        self.val_by_level.reset()

    def test_step(self, batch: Batch, batch_idx: int) -> None:
        if not len(batch.x0):
            return
        eps, t = self.fixed_noise(batch)
        x0_hat = self(self.denoiser.schedule.mix(batch.x0, eps, t), t, batch.label)
        self.test_metrics.update(x0_hat.float(), batch.x0)

    def on_test_epoch_end(self) -> None:
        self.log_dict(self.test_metrics)

    def fixed_noise(self, batch: Batch) -> tuple[Tensor, Tensor]:
        """(eps, t) for these images, the same every time: eps like x0, t (B,) spread evenly over the levels' distribution."""
        number = batch.number.cpu()
        eps = image_noise(self.noise_seed, number.tolist(), batch.x0.shape[1:]).to(batch.x0)
        # the golden ratio's multiples fill [0, 1] evenly, so any run of consecutive images covers the levels
        u = (number.double() * 0.6180339887498949 % 1).to(batch.x0)
        return eps, self.levels.quantile(u)

    def _follow_the_schedule(self) -> None:
        """Sets the learning rates anew: a run that goes on may have another end than it had."""
        factor = self.lr_schedule.factor(training_progress(self.trainer))
        for each in self.trainer.lr_scheduler_configs:
            assert isinstance(each.scheduler, LambdaLR)
            for group, base in zip(each.scheduler.optimizer.param_groups, each.scheduler.base_lrs, strict=True):
                group["lr"] = base * factor

    def configure_optimizers(self) -> OptimizerLRScheduler:
        optimizer = self.optimizer(self.denoiser.parameters())
        scheduler = LambdaLR(optimizer, lambda _: self.lr_schedule.factor(training_progress(self.trainer)))
        return {
            "optimizer": optimizer,
            "lr_scheduler": {"scheduler": scheduler, "interval": "step", "name": "train/learning_rate"},
        }
