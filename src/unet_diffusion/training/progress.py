"""Telling people how far a training is: images per second, a progress bar over the whole run, a validation at its end."""

import math
import time
from typing import Any

import lightning as L
import torch
from lightning.pytorch.callbacks import Callback, TQDMProgressBar
from lightning.pytorch.callbacks.progress.tqdm_progress import Tqdm
from torch import Tensor
from torch.optim import Optimizer

from unet_diffusion.checks import whole_number
from unet_diffusion.data.datamodule import Batch
from unet_diffusion.errors import UserError


def is_logged(module: L.LightningModule) -> bool:
    """Whether what this training step logs is written down: every `trainer.log_every_n_steps`-th is, by Lightning's count."""
    trainer = module.trainer
    stepped = trainer.fit_loop.epoch_loop._batches_that_stepped  # not public, but what its own loggers go by
    return (stepped + 1) % trainer.log_every_n_steps == 0  # type: ignore[attr-defined, no-any-return]


class ImagesPerSecond(Callback):
    """Logs `train/images_per_second`, over all processes; time spent in validation and checkpoints does not count."""

    def __init__(self) -> None:
        self._images = 0
        self._seconds = 0.0
        self._since: float | None = None

    def on_train_batch_start(self, trainer: L.Trainer, pl_module: L.LightningModule, batch: Batch, batch_idx: int) -> None:
        if self._since is None:
            self._since = time.perf_counter()

    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: Any, batch: Batch, batch_idx: int
    ) -> None:
        self._images += len(batch.x0)
        if is_logged(pl_module):
            self._pause()
            rate = self._images * trainer.world_size / max(self._seconds, 1e-9)
            pl_module.log("train/images_per_second", rate, prog_bar=True)
            self._images, self._seconds = 0, 0.0

    def on_validation_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self._pause()

    def _pause(self) -> None:
        if self._since is not None:
            self._seconds += time.perf_counter() - self._since
            self._since = None


class RunProgressBar(TQDMProgressBar):
    """One bar over all steps of the run; Lightning's own starts again with every epoch, and ours can be short.

    Args:
        refresh_rate: steps between updates, 0 or more; 0: no bar.

    Raises:
        ValueError: it is not a whole number of 0 or more.
    """

    def __init__(self, refresh_rate: int = 10) -> None:
        super().__init__(refresh_rate=whole_number("refresh_rate", refresh_rate, at_least=0))

    def on_train_start(self, trainer: L.Trainer, *_: Any) -> None:
        super().on_train_start()
        bar = self.train_progress_bar
        bar.initial = bar.n = trainer.global_step
        self.on_train_epoch_start(trainer)  # which a run that goes on within an epoch does not come to

    def on_train_epoch_start(self, trainer: L.Trainer, *_: Any) -> None:
        bar = self.train_progress_bar
        if math.isfinite(trainer.estimated_stepping_batches):
            bar.total = int(trainer.estimated_stepping_batches)
        bar.set_description("Training")

    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        bar, step = self.train_progress_bar, trainer.global_step
        if not bar.disable and (step % self.refresh_rate == 0 or step == bar.total):
            bar.n = step
            bar.set_postfix(self.get_metrics(trainer, pl_module))

    def get_metrics(self, trainer: L.Trainer, pl_module: L.LightningModule) -> dict[str, Any]:
        """The logged values in a few characters each, without the constant version number."""
        metrics = super().get_metrics(trainer, pl_module)
        metrics.pop("v_num", None)
        if (rate := metrics.pop("train/images_per_second", None)) is not None:
            metrics["images/s"] = f"{rate:,.0f}"
        return {name.removeprefix("train/"): value for name, value in metrics.items()}

    def init_validation_tqdm(self) -> Tqdm:
        """No bar of its own: a validation takes a second or two, and its bar would scroll the training's away."""
        return Tqdm(disable=True)

    def init_test_tqdm(self) -> Tqdm:
        """Likewise."""
        return Tqdm(disable=True)


class ValidateAtEnd(Callback):
    """Validates after the last step too, so that the best checkpoint can be the final one whatever ends the run."""

    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: Any, batch: Batch, batch_idx: int
    ) -> None:
        last_epoch = trainer.current_epoch + 1 == trainer.max_epochs
        if trainer.global_step >= trainer.max_steps > 0 or (last_epoch and trainer.is_last_batch):
            trainer.should_stop = True


class StopOnNonFinite(Callback):
    """Ends a run whose loss or gradient is no longer finite, before it spoils the weights; what the run has saved stays.

    On a CPU the loss is looked at in every step, elsewhere in those in which it is read anyway, as a GPU would have to
    wait. The gradient is looked at in these alone: it costs more, and a step that it spoils shows in the next one's loss.
    """

    def on_before_optimizer_step(self, trainer: L.Trainer, pl_module: L.LightningModule, optimizer: Optimizer) -> None:
        if trainer.precision == "16-mixed":
            return  # its gradient scaler leaves such steps out by itself
        seen, logged = getattr(pl_module, "last_seen", None), is_logged(pl_module)
        if seen is not None and (logged or pl_module.device.type == "cpu"):
            self._check(trainer, pl_module, seen.loss, "loss", trainer.global_step + 1)
        if logged:
            gradients = [p.grad for p in pl_module.parameters() if p.grad is not None]
            norm = torch.stack(torch._foreach_norm(gradients)).sum()
            self._check(trainer, pl_module, norm, "gradient", trainer.global_step + 1)

    def on_validation_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self._check(trainer, pl_module, trainer.callback_metrics["val/loss"], "validation loss", trainer.global_step)

    def _check(self, trainer: L.Trainer, module: L.LightningModule, value: Tensor, what: str, step: int) -> None:
        if torch.isfinite(value):
            return
        seen = getattr(module, "last_seen", None)
        of = f"loss {seen.loss.item():g}, noise levels {seen.t.min().item():.2f} to {seen.t.max().item():.2f}, " if seen else ""
        raise UserError(
            f"the {what} is not finite in step {step} ({of}learning rate {trainer.optimizers[0].param_groups[0]['lr']:g}): "
            f"lower optimizer.lr, or clip the gradient by trainer.gradient_clip_val=1"
        )
