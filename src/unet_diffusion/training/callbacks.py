"""Callbacks: EMA, preview images, checks, and what makes a run resume exactly."""

import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import Annotated, Any

import lightning as L
import torch
from lightning.pytorch.callbacks import Callback, WeightAveraging
from lightning.pytorch.utilities.exceptions import SIGTERMException
from pydantic import Field, NonNegativeInt
from torch import Tensor

from unet_diffusion.data.datamodule import Batch
from unet_diffusion.diffusion.denoiser import CFGDenoiser
from unet_diffusion.diffusion.noise import seeded_noise
from unet_diffusion.generation.pipeline import sample_images
from unet_diffusion.images import image_grid, save_png
from unet_diffusion.samplers import Sampler
from unet_diffusion.training.loggers import log_image
from unet_diffusion.training.module import DenoisingModule


class EMA(WeightAveraging):
    """Exponential moving average of the weights, used for validation, previews and test.

    In the checkpoint the EMA is the `state_dict`, and the raw weights are `current_model_state`.
    Parameters are averaged; buffers, such as BatchNorm's statistics, are those of the raw model.
    A step keeps the fraction `decay` of the average, in [0, 1), which grows to this value as
    step / (9 + step), so that the first steps have little weight.
    """

    def __init__(self, decay: Annotated[float, Field(ge=0, lt=1)] = 0.999) -> None:
        self.decay = decay
        super().__init__(use_buffers=False)

    def setup(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        # The module is still on the CPU here; its average must be on the device.
        self._device = trainer.strategy.root_device
        super().setup(trainer, pl_module, stage)

    def on_load_checkpoint(
        self, trainer: L.Trainer, pl_module: L.LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        # In a test after a fit, Lightning's hook would load the raw weights.
        if trainer.state.fn == "fit":
            super().on_load_checkpoint(trainer, pl_module, checkpoint)

    @torch.no_grad()
    def on_train_batch_end(self, trainer: L.Trainer, pl_module: L.LightningModule, *_: Any) -> None:
        # Without AveragedModel.update_parameters, whose step counter makes the GPU wait.
        step, average = trainer.global_step, self._average_model
        if average is None or step <= self._latest_update_step:
            return
        decay = min(self.decay, step / (9 + step)) if step > 1 else 0.0
        torch._foreach_lerp_(list(average.parameters()), list(pl_module.parameters()), 1 - decay)
        for averaged, buffer in zip(average.module.buffers(), pl_module.buffers(), strict=True):
            averaged.copy_(buffer)
        self._latest_update_step = step


@dataclass(eq=False)
class Previews(Callback):
    """Image grids at every validation, as PNG in previews/ and in the loggers.

    `denoised`: the first validation images, and a noisy and a denoised row at the 10th, 30th, 50th,
    70th and 90th percentile of the time distribution. `generated`: samples from fixed noise,
    one row per class for class-conditional networks. The weights are those that are validated (the
    EMA if there is one), and the noise does not use the training generator.
    """

    sampler: Sampler
    num_images: Annotated[int, Field(ge=1, le=100)] = 8  # per row
    noise_seed: NonNegativeInt = 0  # of the noise in sampling
    guidance_scale: Annotated[float, Field(ge=1)] = 1.0

    def on_validation_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        # Not in on_validation_end: WeightAveraging restores the raw weights before it.
        if trainer.sanity_checking or not trainer.is_global_zero or trainer.fast_dev_run:  # type: ignore[attr-defined]
            return
        assert isinstance(pl_module, DenoisingModule)
        val = trainer.datamodule.splits["val"]  # type: ignore[attr-defined]
        batch = val.__getitems__(range(min(self.num_images, len(val))))
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
        rows = min(module.denoiser.num_classes, 10) or 2
        label = torch.arange(rows).repeat_interleave(self.num_images)  # ignored without classes
        output = sample_images(
            CFGDenoiser(module.denoiser, self.guidance_scale),
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
            raise ValueError(
                f"The loss is {loss.item()} at step {step} (learning rate {lr:g}). Reduce "
                f"optimizer.lr, or clip gradients with trainer.gradient_clip_val=1."
            )


class ValidateAtEnd(Callback):
    """Validates after the last step, so that best.ckpt can be the final one."""

    def on_train_batch_end(self, trainer: L.Trainer, *_: Any) -> None:
        last_epoch = trainer.current_epoch + 1 == trainer.max_epochs
        if trainer.global_step >= trainer.max_steps > 0 or (last_epoch and trainer.is_last_batch):
            # With should_stop, Lightning would log the values of an earlier step for the last one.
            trainer.val_check_batch = 1


class ResumeState(Callback):
    """Saves and restores the RNG state, and flushes the loggers with each checkpoint.

    The first process on a CPU continues its noise exactly. The noise of other devices and of other
    processes is seeded from the seed of the run, the rank and the step.
    """

    def __init__(self, seed: int) -> None:
        self._seed = seed
        self._rng_state: Tensor | None = None

    def state_dict(self) -> dict[str, Any]:
        return {"rng_state": torch.get_rng_state()}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self._rng_state = state_dict["rng_state"]

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        resumed = self._rng_state is not None
        if trainer.global_rank > 0 or (resumed and pl_module.device.type != "cpu"):
            torch.manual_seed(hash((self._seed, trainer.global_rank, trainer.global_step)))
        elif self._rng_state is not None:
            torch.set_rng_state(self._rng_state)
        self._rng_state = None

    def on_save_checkpoint(
        self, trainer: L.Trainer, pl_module: L.LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        for logger in trainer.loggers:
            logger.save()

    def on_load_checkpoint(
        self, trainer: L.Trainer, pl_module: L.LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        # The run can have been moved, and Lightning deletes the files that it finds here.
        directory = Path(trainer.default_root_dir) / "checkpoints"
        for state in checkpoint["callbacks"].values():
            if isinstance(state, dict) and "best_model_path" in state:
                state["dirpath"] = str(directory)
                for key in ("best_model_path", "kth_best_model_path", "last_model_path"):
                    state[key] = state[key] and str(directory / Path(state[key]).name)
                state["best_k_models"] = {
                    str(directory / Path(file).name): score
                    for file, score in state["best_k_models"].items()
                }


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
