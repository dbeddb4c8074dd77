"""The LightningModule: a denoiser and its loss on noisy images."""

import copy
from collections.abc import Callable, Iterable
from typing import Any

import lightning as L
import numpy as np
import torch
from lightning.fabric.utilities import move_data_to_device
from lightning.pytorch.utilities.types import OptimizerLRScheduler
from torch import Tensor
from torch.nn import Parameter
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR
from torchmetrics import MeanMetric

from unet_diffusion.data.dataset import Batch
from unet_diffusion.diffusion.denoiser import NULL_LABEL, Denoiser
from unet_diffusion.diffusion.noise import seeded_noise
from unet_diffusion.diffusion.time_distributions import TimeDistribution
from unet_diffusion.errors import UserError
from unet_diffusion.evaluation.denoising import denoising_metrics
from unet_diffusion.objectives import NoisyBatch, Objective
from unet_diffusion.training.camera_noise import camera_noise
from unet_diffusion.training.ema import EMA
from unet_diffusion.training.lr_schedules import LRSchedule, training_progress

_INVERSE_GOLDEN_RATIO = 0.6180339887498949


class DenoisingModule(L.LightningModule):
    """Trains a denoiser on noisy images.

    The noise of a training step is a function of `seed`, process and step, so that a resumed
    training continues it. Validation and test use the same noise every time: it depends on
    `noise_seed` and on the index of each image. Logged values are averaged over all processes.

    Args:
        denoiser: the denoiser.
        objective: the loss of a training step.
        time_distribution: p(t) in training.
        image_shape: (C, H, W).
        optimizer: called with the parameters.
        lr_schedule: factor for the learning rate; None: constant.
        ema: moving average of the weights, used for validation, test and previews; None: none.
        seed: seed of the noise in training, at least 0.
        noise_seed: seed of the noise in validation and test, at least 0.
        label_dropout: probability of the null class in training, independently for each image
            (Ho and Salimans 2022, "Classifier-Free Diffusion Guidance", alg. 1).
        camera_noise: probability of noise like that of cameras, independently for each image.
    """

    def __init__(
        self,
        denoiser: Denoiser,
        objective: Objective,
        time_distribution: TimeDistribution,
        image_shape: tuple[int, int, int],
        optimizer: Callable[[Iterable[Parameter]], Optimizer],
        lr_schedule: LRSchedule | None = None,
        ema: EMA | None = None,
        seed: int = 0,
        noise_seed: int = 0,
        label_dropout: float = 0.0,
        camera_noise: float = 0.0,
    ) -> None:
        super().__init__()
        self.denoiser = denoiser
        self.objective = objective
        self.time_distribution = time_distribution
        self.optimizer = optimizer
        self.lr_schedule = lr_schedule
        self.ema = ema
        self.ema_denoiser = copy.deepcopy(denoiser).requires_grad_(False) if ema else None
        self.seed = seed
        self.noise_seed = noise_seed
        self.label_dropout = label_dropout
        self.camera_noise = camera_noise
        self.is_training_started = False
        self.images_seen = 0  # training images that the loss of this process has used
        self.val_metrics = denoising_metrics(image_shape[1:], prefix="val/")
        self.test_metrics = denoising_metrics(image_shape[1:], prefix="test/")
        self.val_loss = MeanMetric(nan_strategy=float("nan"))  # the default ignores NaN
        self.example_input_array = torch.zeros(1, *image_shape), torch.ones(1)

    @property
    def averaged_denoiser(self) -> Denoiser:
        """The denoiser with EMA weights, or the denoiser itself without an EMA."""
        return self.denoiser if self.ema_denoiser is None else self.ema_denoiser

    def forward(self, xt: Tensor, t: Tensor, label: Tensor | None = None) -> Tensor:
        """Predicts x0_hat (B, C, H, W), with EMA weights if there is an EMA."""
        return self.averaged_denoiser(xt, t, label)

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        step = (self.seed, self.global_rank, self.current_epoch, batch_idx)
        torch.manual_seed(int(np.random.SeedSequence(step).generate_state(1, np.uint64)[0]))
        x0 = batch.x0
        t = self.time_distribution.sample(len(x0), device=x0.device)
        eps = torch.randn_like(x0)
        if self.camera_noise and (chosen := torch.rand(len(x0)) < self.camera_noise).any():
            eps[chosen], t[chosen] = camera_noise(x0[chosen], t[chosen], self.denoiser.schedule)
        label = batch.label
        if self.label_dropout:
            dropped = torch.rand(len(x0), device=x0.device) < self.label_dropout
            label = torch.where(dropped, NULL_LABEL, label)
        noisy_batch = NoisyBatch(x0, eps, t, label)
        progress = training_progress(self.trainer)
        loss = self.objective.loss(self.denoiser, noisy_batch, self.averaged_denoiser, progress)
        self.images_seen += loss.num_images
        # Logging a value costs as much as a convolution.
        if (self.trainer.global_step + 1) % self.trainer.log_every_n_steps == 0:  # type: ignore[attr-defined]
            self.log("train/loss", loss.value, prog_bar=True, sync_dist=True)
        return loss.value

    def optimizer_step(self, *args: Any, **kwargs: Any) -> None:
        super().optimizer_step(*args, **kwargs)
        if self.ema is not None and self.ema_denoiser is not None:
            self.ema.update(self.ema_denoiser, self.denoiser, self.trainer.global_step + 1)

    def validation_step(self, batch: Batch, batch_idx: int) -> None:
        if not len(batch.x0):  # the last batch of a process can be empty
            return
        eps, t = self.validation_noise(batch)
        losses, x0_hat = self.averaged_denoiser.per_image_loss(batch.x0, eps, t, batch.label)
        self.val_loss.update(losses)
        self.val_metrics.update(x0_hat.float(), batch.x0)

    def on_validation_epoch_end(self) -> None:
        self.log("val/loss", self.val_loss)
        self.log_dict(self.val_metrics)

    def test_step(self, batch: Batch, batch_idx: int) -> None:
        if not len(batch.x0):
            return
        eps, t = self.validation_noise(batch)
        # Without labels: comparable with unconditional networks, and the class is rarely known.
        x0_hat = self(self.denoiser.schedule.add_noise(batch.x0, eps, t), t)
        self.test_metrics.update(x0_hat.float(), batch.x0)

    def on_test_epoch_end(self) -> None:
        self.log_dict(self.test_metrics)

    def validation_noise(self, batch: Batch) -> tuple[Tensor, Tensor]:
        """(eps, t) of these images, always the same; t (B,) covers the time distribution evenly."""
        indices = batch.indices.cpu()
        eps = seeded_noise(self.noise_seed, indices.tolist(), batch.x0.shape[1:]).to(batch.x0)
        # Multiples of the inverse golden ratio fill [0, 1] evenly for consecutive indices.
        u = (indices.double() * _INVERSE_GOLDEN_RATIO % 1).to(batch.x0)
        return eps, self.time_distribution.icdf(u)

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        states: list[Any] = [move_data_to_device(self.objective.state_dict(), "cpu")]
        if (count := self.trainer.world_size) > 1:
            own, states = states[0], [None] * count
            torch.distributed.all_gather_object(states, own)
        checkpoint["objective"] = states  # of each process
        checkpoint["images_seen"] = self.images_seen

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        states = checkpoint["objective"]
        self.objective.load_state_dict(states[self.global_rank % len(states)])
        self.images_seen = checkpoint["images_seen"]

    def configure_optimizers(self) -> OptimizerLRScheduler:
        optimizer = self.optimizer(self.denoiser.parameters())
        optimizer.register_load_state_dict_post_hook(check_state_shapes)
        scheduler = LambdaLR(optimizer, self._lr_factor)
        return {
            "optimizer": optimizer,
            "lr_scheduler": {"scheduler": scheduler, "interval": "step", "name": "learning_rate"},
        }

    def on_train_start(self) -> None:
        self.is_training_started = True
        # A resumed run can have another limit, and with it another learning rate.
        scheduler = self.lr_schedulers()
        assert isinstance(scheduler, LambdaLR)
        for group, lr in zip(scheduler.optimizer.param_groups, scheduler.base_lrs, strict=True):
            group["lr"] = lr * self._lr_factor(scheduler.last_epoch)

    def _lr_factor(self, _step: int) -> float:
        return self.lr_schedule.factor(training_progress(self.trainer)) if self.lr_schedule else 1.0


def check_state_shapes(optimizer: Optimizer) -> None:
    """Checks the restored state: kernels read memory beyond a tensor that is too small."""
    for parameter, state in optimizer.state.items():
        for name, value in state.items():
            if isinstance(value, Tensor) and value.ndim and value.shape != parameter.shape:
                shapes = f"{list(value.shape)} instead of {list(parameter.shape)}"
                raise UserError(f"The checkpoint is damaged: optimizer state {name} {shapes}.")
