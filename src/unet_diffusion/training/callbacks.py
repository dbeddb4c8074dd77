"""Callbacks: EMA, preview images, throughput, checks, and what makes a run resume exactly."""

import signal
import sys
import threading
import time
from pathlib import Path
from types import FrameType
from typing import Any

import lightning as L
import torch
from lightning.pytorch.callbacks import Callback, WeightAveraging
from lightning.pytorch.loggers import TensorBoardLogger
from torch import Tensor
from torch.optim import Optimizer

from unet_diffusion.data.datamodule import Batch
from unet_diffusion.diffusion.guidance import CFGDenoiser
from unet_diffusion.diffusion.noise import seeded_noise
from unet_diffusion.generation.pipeline import sample_images
from unet_diffusion.images import image_grid, save_png
from unet_diffusion.samplers.base import Sampler
from unet_diffusion.training.module import DenoisingModule


class EMA(WeightAveraging):
    """Exponential moving average of the weights, used for validation, previews and test.

    In the checkpoint the EMA is the `state_dict`, and the raw weights are `current_model_state`.
    Parameters are averaged; buffers, such as BatchNorm's statistics, are those of the raw model.

    Args:
        decay: fraction of the average that a step keeps, in [0, 1); it grows to this value as
            (1 + step) / (10 + step), so that the first steps have little weight.

    Raises:
        ValueError: `decay` is out of range.
    """

    def __init__(self, decay: float = 0.999) -> None:
        if not 0 <= decay < 1:
            raise ValueError(f"decay={decay}: expected a value in [0, 1).")
        self.decay = decay
        super().__init__(use_buffers=False, multi_avg_fn=self._average)

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

    def _average(self, averages: list[Tensor], weights: list[Tensor], steps: Tensor | int) -> None:
        decay = min(self.decay, (1 + int(steps)) / (10 + int(steps)))
        torch._foreach_lerp_(averages, weights, 1 - decay)


class Previews(Callback):
    """Image grids at every validation, as PNG in previews/ and in TensorBoard.

    `denoised`: the first validation images, and for noise levels at 10, 30, 50, 70 and 90 percent
    of the training distribution a noisy and a denoised row. `generated`: samples from fixed noise,
    one row per class for class-conditional networks. The weights are those that are validated (the
    EMA if there is one), and the noise does not use the training generator.

    Args:
        sampler: the sampler.
        num_images: images per row, 1 to 100.
        noise_seed: seed of the initial noise, at least 0.
        guidance_scale: at least 1 (off).

    Raises:
        ValueError: an argument is out of range.
    """

    def __init__(
        self,
        sampler: Sampler,
        num_images: int = 8,
        noise_seed: int = 0,
        guidance_scale: float = 1.0,
    ) -> None:
        if not 1 <= num_images <= 100:
            raise ValueError(f"num_images={num_images}: expected 1 to 100.")
        self.sampler = sampler
        self.num_images = num_images
        self.noise_seed = noise_seed
        self.guidance_scale = guidance_scale

    def on_fit_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        assert isinstance(pl_module, DenoisingModule)
        for logger in trainer.loggers:
            if isinstance(logger, TensorBoardLogger) and trainer.is_global_zero:
                x0 = trainer.datamodule.splits["val"].__getitems__([0]).x0.to(pl_module.device)  # type: ignore[attr-defined]
                logger.experiment.add_graph(pl_module.denoiser, (x0, x0.new_ones(1)))
                # torch keeps traced classes until the process ends (pytorch/pytorch#35600).
                torch._C._jit_clear_class_registry()

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
                if isinstance(logger, TensorBoardLogger):
                    logger.experiment.add_image(f"previews/{name}", grid, trainer.global_step)

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
        num_classes = min(module.denoiser.num_classes, 10)
        label = None
        if num_classes:
            label = torch.arange(num_classes).repeat_interleave(self.num_images)
        num_samples = (num_classes or 2) * self.num_images
        output = sample_images(
            CFGDenoiser(module.denoiser, self.guidance_scale),
            self.sampler,
            seeded_noise(self.noise_seed, range(num_samples), image_shape),
            label,
            seed=self.noise_seed,
            device=module.device,
        )
        return image_grid(output.images, columns=self.num_images)


class Throughput(Callback):
    """Logs `train/images_per_second` over all processes, without validation and checkpoints.

    Lightning's ThroughputMonitor synchronizes CUDA at every step; this callback never does.
    """

    def __init__(self) -> None:
        self._images = 0
        self._start: float | None = None

    def on_train_batch_start(self, *_: Any) -> None:
        self._start = self._start or time.perf_counter()

    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: Any, batch: Batch, _: int
    ) -> None:
        self._images += len(batch.x0) * trainer.world_size
        if self._start and trainer.global_step % trainer.log_every_n_steps == 0:  # type: ignore[attr-defined]
            rate = self._images / (time.perf_counter() - self._start)
            pl_module.log("train/images_per_second", rate, prog_bar=True)
            self._reset()

    def on_validation_start(self, *_: Any) -> None:
        self._reset()

    def _reset(self) -> None:
        self._images, self._start = 0, None


class StopOnNonFinite(Callback):
    """Stops with an error before a loss or gradient that is not finite changes the weights.

    On a CPU the loss is checked at every step. On other devices, and for the gradient, only at
    logged steps: a GPU would have to wait for the value.
    """

    def on_before_backward(
        self, trainer: L.Trainer, pl_module: L.LightningModule, loss: Tensor
    ) -> None:
        if pl_module.device.type == "cpu" or self._is_logged(trainer):
            self._check(trainer, loss, "loss", trainer.global_step + 1)

    def on_before_optimizer_step(
        self, trainer: L.Trainer, pl_module: L.LightningModule, optimizer: Optimizer
    ) -> None:
        # With fp16, the gradient scaler skips such steps.
        if self._is_logged(trainer) and trainer.precision != "16-mixed":
            gradients = [p.grad for p in pl_module.parameters() if p.grad is not None]
            norm = torch.stack(torch._foreach_norm(gradients)).sum()
            self._check(trainer, norm, "gradient", trainer.global_step + 1)

    def on_validation_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        loss = trainer.callback_metrics["val/loss"]
        self._check(trainer, loss, "validation loss", trainer.global_step)

    def _is_logged(self, trainer: L.Trainer) -> bool:
        return (trainer.global_step + 1) % trainer.log_every_n_steps == 0  # type: ignore[attr-defined, no-any-return]

    def _check(self, trainer: L.Trainer, value: Tensor, name: str, step: int) -> None:
        if not torch.isfinite(value):
            lr = trainer.optimizers[0].param_groups[0]["lr"]
            raise ValueError(
                f"The {name} is {float(value)} at step {step} (learning rate {lr:g}). "
                f"Reduce optimizer.lr, or clip gradients with trainer.gradient_clip_val=1."
            )


class ValidateAtEnd(Callback):
    """Validates after the last step, so that best.ckpt can be the final one."""

    def on_train_batch_end(self, trainer: L.Trainer, *_: Any) -> None:
        last_epoch = trainer.current_epoch + 1 == trainer.max_epochs
        if trainer.global_step >= trainer.max_steps > 0 or (last_epoch and trainer.is_last_batch):
            # With should_stop, Lightning would log the values of an earlier step for the last one.
            trainer.val_check_batch = 1


class ResumeState(Callback):
    """Saves and restores the RNG state and the training time, and flushes the loggers.

    Every process of several has its own noise; a resumed process with a rank above 0 reseeds its
    generator from the seed, its rank and the step.

    Args:
        seed: seed of the run.
    """

    def __init__(self, seed: int) -> None:
        self._seed = seed
        self._rng_state: dict[str, Tensor] | None = None
        self._restored_seconds = self._start = 0.0
        self.seconds = 0.0
        """Training time at the end of `fit`, without interruptions."""

    def state_dict(self) -> dict[str, Any]:
        rng_state = {"cpu": torch.get_rng_state()}
        if torch.cuda.is_available():
            rng_state["cuda"] = torch.cuda.get_rng_state()
        if torch.backends.mps.is_available():
            rng_state["mps"] = torch.mps.get_rng_state()
        return {"rng_state": rng_state, "seconds": time.perf_counter() - self._start}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self._rng_state = state_dict["rng_state"]
        self._restored_seconds = state_dict["seconds"]

    def on_fit_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self._start = time.perf_counter() - self._restored_seconds

    def on_fit_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self.seconds = time.perf_counter() - self._start

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        if trainer.global_rank > 0:
            torch.manual_seed(hash((self._seed, trainer.global_rank, trainer.global_step)))
        elif self._rng_state is not None:
            torch.set_rng_state(self._rng_state["cpu"])
            if "cuda" in self._rng_state and torch.cuda.is_available():
                torch.cuda.set_rng_state(self._rng_state["cuda"])
            if "mps" in self._rng_state and torch.backends.mps.is_available():
                torch.mps.set_rng_state(self._rng_state["mps"])
        self._rng_state = None

    def on_save_checkpoint(
        self, trainer: L.Trainer, pl_module: L.LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        for logger in trainer.loggers:
            logger.save()
            if isinstance(logger, TensorBoardLogger) and trainer.is_global_zero:
                logger.experiment.flush()

    def on_load_checkpoint(
        self, trainer: L.Trainer, pl_module: L.LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        # The run can have been moved, and Lightning deletes the files that it finds here.
        directory = Path(trainer.default_root_dir) / "checkpoints"
        for state in checkpoint["callbacks"].values():
            if isinstance(state, dict) and "best_model_path" in state:
                _relocate_checkpoints(state, directory)


def _relocate_checkpoints(state: dict[str, Any], directory: Path) -> None:
    """Points the state of a ModelCheckpoint to the directory of this run."""

    def relocated(path: str) -> str:
        return str(directory / Path(path).name) if str(path).endswith(".ckpt") else ""

    state["dirpath"] = str(directory)
    for key in ("best_model_path", "kth_best_model_path", "last_model_path"):
        state[key] = relocated(state.get(key, ""))
    state["best_k_models"] = {
        relocated(path): score for path, score in state["best_k_models"].items() if relocated(path)
    }


class InterruptedTraining(SystemExit):
    """A signal stopped the training after a checkpoint was saved; exit status 128 + signal."""

    def __init__(self, signal_number: int, step: int) -> None:
        super().__init__(128 + signal_number)
        self.step = step


class StopOnSignal(Callback):
    """On SIGINT, SIGTERM or SIGUSR1, finishes the step, saves a checkpoint and stops.

    A signal after the last step lets the test finish. A second signal stops at once. SIGUSR1 is
    Slurm's warning before the time limit.

    Args:
        checkpoint: the file to save to.
    """

    def __init__(self, checkpoint: Path) -> None:
        self._checkpoint = checkpoint
        self._received: int | None = None
        self._saved = False
        self._previous_handlers: dict[int, Any] = {}

    def setup(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        if stage != "fit" or threading.current_thread() is not threading.main_thread():
            return
        signals = [signal.SIGINT, signal.SIGTERM]
        if hasattr(signal, "SIGUSR1") and signal.getsignal(signal.SIGUSR1) == signal.SIG_DFL:
            signals.append(signal.SIGUSR1)  # a launcher can have its own handler
        self._previous_handlers = {each: signal.signal(each, self._receive) for each in signals}

    def on_train_batch_end(self, trainer: L.Trainer, *_: Any) -> None:
        stop = self._received is not None
        accumulating = (trainer.fit_loop.batch_idx + 1) % trainer.accumulate_grad_batches != 0
        if trainer.world_size > 1:  # all processes stop at the same step
            if accumulating or trainer.global_step % trainer.log_every_n_steps:  # type: ignore[attr-defined]
                return
            stop = trainer.strategy.reduce_boolean_decision(stop, all=False)
        # Lightning completes an epoch only after this hook.
        mid_epoch = not trainer.is_last_batch or trainer.num_training_batches == 1
        finished = trainer.global_step == trainer.max_steps
        if stop and not accumulating and mid_epoch and not finished:
            trainer.save_checkpoint(self._checkpoint, weights_only=False)
            self._saved = True

    def on_train_batch_start(self, trainer: L.Trainer, *_: Any) -> None:
        if self._saved:  # after the values of the last step are logged
            raise InterruptedTraining(self._received or signal.SIGTERM, trainer.global_step)

    def on_exception(
        self, trainer: L.Trainer, pl_module: L.LightningModule, exception: BaseException
    ) -> None:
        self._restore_handlers()

    def teardown(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        if stage == "test" or trainer.fast_dev_run:  # type: ignore[attr-defined]
            self._restore_handlers()

    def _receive(self, signal_number: int, frame: FrameType | None) -> None:
        if self._received is not None:
            sys.exit(128 + signal_number)
        self._received = signal_number
        print("\nStopping as soon as possible. Repeat to stop at once.", flush=True)

    def _restore_handlers(self) -> None:
        for signal_number, handler in self._previous_handlers.items():
            signal.signal(signal_number, handler)
        self._previous_handlers = {}
