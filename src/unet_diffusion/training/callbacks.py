"""Callbacks: preview images, checks, and what makes a run resume."""

import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from types import FrameType
from typing import Annotated, Any

import lightning as L
import torch
from lightning.pytorch.callbacks import Callback
from lightning.pytorch.utilities.exceptions import SIGTERMException
from pydantic import Field, NonNegativeInt, validate_call
from torch import Tensor

from unet_diffusion.data.dataset import Batch
from unet_diffusion.diffusion.denoiser import CFGDenoiser
from unet_diffusion.diffusion.noise import seeded_noise
from unet_diffusion.errors import STRICT, UserError
from unet_diffusion.generation.sampling import sample_images
from unet_diffusion.images import image_grid, save_png
from unet_diffusion.samplers import Sampler
from unet_diffusion.training.lightning_internals import (
    move_checkpoint_paths,
    validate_after_this_step,
)
from unet_diffusion.training.loggers import log_image
from unet_diffusion.training.module import DenoisingModule


class Previews(Callback):
    """Image grids at every validation, as PNG in previews/ and in the loggers.

    `denoised`: the first validation images, and a noisy and a denoised row at the 10th, 30th, 50th,
    70th and 90th percentile of the time distribution. `generated`: samples from fixed noise,
    one row per class for class-conditional networks. The weights are those that are validated (the
    EMA if there is one), and the noise does not use the training generator.
    """

    @validate_call(config=STRICT)
    def __init__(
        self,
        sampler: Sampler,
        num_images: Annotated[int, Field(ge=1, le=100)] = 8,  # per row
        noise_seed: NonNegativeInt = 0,  # of the noise in sampling
        guidance_scale: Annotated[float, Field(ge=1)] = 1.0,
    ) -> None:
        self.sampler = sampler
        self.num_images = num_images
        self.noise_seed = noise_seed
        self.guidance_scale = guidance_scale

    def on_validation_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        if trainer.sanity_checking or not trainer.is_global_zero or trainer.fast_dev_run:  # type: ignore[attr-defined]
            return
        assert isinstance(pl_module, DenoisingModule)
        val = trainer.datamodule.splits["val"]  # type: ignore[attr-defined]
        batch = val.batch(range(min(self.num_images, len(val))))
        grids = {
            "denoised": self.denoised(pl_module, batch),
            "generated": self.generated(pl_module, batch.x0.shape[1:]),
        }
        for name, grid in grids.items():
            file = f"{name}-{trainer.global_step:06d}.png"
            save_png(grid, Path(trainer.default_root_dir) / "previews" / file)
            for logger in trainer.loggers:
                log_image(logger, f"previews/{name}", grid, trainer.global_step)

    @torch.inference_mode()
    def denoised(self, module: DenoisingModule, batch: Batch) -> Tensor:
        """uint8 grid (3, H, W): clean images, then noisy and denoised rows for each noise level."""
        batch = Batch(*(each.to(module.device) for each in batch))
        eps, _ = module.validation_noise(batch)
        quantiles = torch.tensor([0.1, 0.3, 0.5, 0.7, 0.9])
        rows = [batch.x0]
        for t_value in sorted(set(module.time_distribution.icdf(quantiles).tolist())):
            t = batch.x0.new_full((len(batch.x0),), t_value)
            xt = module.denoiser.schedule.add_noise(batch.x0, eps, t)
            rows += [xt, module(xt, t, batch.label)]
        return image_grid(torch.cat(rows).cpu(), columns=len(batch.x0))

    def generated(self, module: DenoisingModule, image_shape: torch.Size) -> Tensor:
        """uint8 grid (3, H, W): two rows of samples, or one for each of the first ten classes."""
        rows = min(module.denoiser.net.num_classes, 10) or 2
        label = torch.arange(rows).repeat_interleave(self.num_images)  # ignored without classes
        output = sample_images(
            CFGDenoiser(module.averaged_denoiser, self.guidance_scale),
            self.sampler,
            seeded_noise(self.noise_seed, range(len(label)), image_shape),
            label,
            seed=self.noise_seed,
            device=module.device,
        )
        return image_grid(output.images, columns=self.num_images)


class StopOnNonFinite(Callback):
    """Stops with an error before a loss that is not finite changes the weights.

    On a CPU the loss is checked at every step, on other devices at logged steps: a GPU would have
    to wait for the value.
    """

    def on_before_backward(
        self, trainer: L.Trainer, pl_module: L.LightningModule, loss: Tensor
    ) -> None:
        step = trainer.global_step + 1
        is_checked = pl_module.device.type == "cpu" or step % trainer.log_every_n_steps == 0  # type: ignore[attr-defined]
        if is_checked and not torch.isfinite(loss):
            lr = trainer.optimizers[0].param_groups[0]["lr"]
            raise UserError(
                f"The loss is {loss.item()} at step {step} (learning rate {lr:g}). Reduce "
                f"optimizer.lr, or clip gradients with trainer.gradient_clip_val=1."
            )


class ValidateAtEnd(Callback):
    """Validates after the last step, so that best.ckpt can be the final one."""

    def on_train_batch_end(self, trainer: L.Trainer, *_: Any) -> None:
        last_epoch = trainer.current_epoch + 1 == trainer.max_epochs
        if trainer.global_step >= trainer.max_steps > 0 or (last_epoch and trainer.is_last_batch):
            validate_after_this_step(trainer)


class SaveLoggers(Callback):
    """Flushes the loggers with each checkpoint, and finds checkpoints in a run that was moved."""

    def on_save_checkpoint(
        self, trainer: L.Trainer, pl_module: L.LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        for logger in trainer.loggers:
            logger.save()

    def on_load_checkpoint(
        self, trainer: L.Trainer, pl_module: L.LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        move_checkpoint_paths(checkpoint, Path(trainer.default_root_dir) / "checkpoints")


class InterruptedTraining(SystemExit):
    """A signal stopped the training after a checkpoint was saved; exit status 128 + signal."""

    def __init__(self, signal_number: int, step: int) -> None:
        super().__init__(128 + signal_number)
        self.step = step


class StopOnSignal(Callback):
    """On SIGINT, SIGTERM or SIGUSR1, finishes the step, saves a checkpoint and stops.

    A signal during the final validation or the test needs no new checkpoint. A second signal stops
    at once. SIGUSR1 is Slurm's warning before the time limit.
    """

    def __init__(self, checkpoint: Path) -> None:
        self._checkpoint = checkpoint
        self._received: int | None = None
        self._saved = False
        self._signals: list[signal.Signals] = []

    def on_train_start(self, *_: Any) -> None:
        for each in self._signals:
            signal.signal(each, self._receive)

    on_test_start = on_train_start  # type: ignore[assignment]  # Lightning replaces the handlers

    @contextmanager
    def handle_signals(self) -> Iterator[None]:
        """Handles signals within the context; exits at its end if one arrived after the test."""
        signals = [signal.SIGINT, signal.SIGTERM]
        if hasattr(signal, "SIGUSR1") and signal.getsignal(signal.SIGUSR1) == signal.SIG_DFL:
            signals.append(signal.SIGUSR1)  # a launcher can have its own handler
        previous = {each: signal.getsignal(each) for each in signals}
        self._signals = signals
        self.on_train_start()
        try:
            with suppress(SIGTERMException):  # Lightning's own, before the first step
                yield
        finally:
            for each, handler in previous.items():
                signal.signal(each, handler)
        if self._received is not None:
            sys.exit(128 + self._received)

    def on_train_batch_end(self, trainer: L.Trainer, *_: Any) -> None:
        if (trainer.fit_loop.batch_idx + 1) % trainer.accumulate_grad_batches:
            return  # between two optimizer steps
        stop = self._received is not None
        if trainer.world_size > 1:  # all processes stop at the same step
            if trainer.global_step % trainer.log_every_n_steps:  # type: ignore[attr-defined]
                return
            stop = trainer.strategy.reduce_boolean_decision(stop, all=False)
        # Lightning completes an epoch only after this hook: wait for a step within an epoch.
        ends_epoch = trainer.is_last_batch and trainer.num_training_batches > 1
        if stop and not ends_epoch and trainer.global_step != trainer.max_steps:
            trainer.save_checkpoint(self._checkpoint, weights_only=False)
            self._saved = True

    def on_train_batch_start(self, trainer: L.Trainer, *_: Any) -> None:
        if self._saved:  # after the values of the last step are logged
            self._stop(trainer)

    def on_train_end(self, trainer: L.Trainer, *_: Any) -> None:
        if self._received is not None:
            self._stop(trainer)

    on_test_batch_start = on_train_end  # type: ignore[assignment]

    def _stop(self, trainer: L.Trainer) -> None:
        raise InterruptedTraining(self._received or signal.SIGTERM, trainer.global_step)

    def _receive(self, signal_number: int, frame: FrameType | None) -> None:
        if self._received is not None:
            sys.exit(128 + signal_number)
        self._received = signal_number
        print("\nStopping after this step. Ctrl-C again stops without saving.", flush=True)
