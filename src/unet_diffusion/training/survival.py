"""What lets a training end at any moment and go on later as if nothing had been."""

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import Any, cast

import lightning as L
import torch
from lightning.pytorch.callbacks import Callback
from lightning.pytorch.loggers import TensorBoardLogger

from unet_diffusion.training.module import DenoisingModule


class InterruptedTraining(Exception):  # noqa: N818 - nothing went wrong
    """A signal ended the training after a step; all is saved."""

    def __init__(self, number: int, step: int) -> None:
        super().__init__(f"signal {number} after step {step}")
        self.number = number
        self.step = step


class RandomState(Callback):
    """Keeps the state of the random numbers that training draws in the checkpoint, and takes it up again."""

    def __init__(self) -> None:
        self._restored: dict[str, Any] | None = None

    def state_dict(self) -> dict[str, Any]:
        """The generators' states, as byte tensors."""
        cuda = torch.cuda.get_rng_state_all() if torch.cuda.is_available() else []
        return {"cpu": torch.get_rng_state(), "cuda": cuda}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self._restored = state_dict

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """As late as can be: nothing is to draw between this and the first step."""
        if self._restored is None:
            return
        torch.set_rng_state(self._restored["cpu"])
        if len(self._restored["cuda"]) == torch.cuda.device_count():
            torch.cuda.set_rng_state_all(self._restored["cuda"])
        self._restored = None


class UnfinishedStep(Callback):
    """Keeps in the checkpoint what an optimizer step has gathered that accumulates batches and still waits for some.

    A validation can fall there. Only for one process: others have gradients of their own, and one checkpoint.
    """

    KEY = "unfinished_step"

    def __init__(self) -> None:
        self._restored: dict[str, Any] | None = None

    def on_save_checkpoint(self, trainer: L.Trainer, pl_module: L.LightningModule, checkpoint: dict[str, Any]) -> None:
        if trainer.world_size == 1 and trainer.fit_loop._should_accumulate():
            gradients = {name: each.grad for name, each in pl_module.named_parameters() if each.grad is not None}
            checkpoint[self.KEY] = {"gradients": gradients, "draws": cast(DenoisingModule, pl_module).draws.parts}

    def on_load_checkpoint(self, trainer: L.Trainer, pl_module: L.LightningModule, checkpoint: dict[str, Any]) -> None:
        self._restored = checkpoint.get(self.KEY)

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        if self._restored is None:
            return
        for name, each in pl_module.named_parameters():
            gradient = self._restored["gradients"].get(name)
            each.grad = None if gradient is None else gradient.to(each.device)
        parts = [tuple(drawn.to(pl_module.device) for drawn in part) for part in self._restored["draws"]]
        cast(DenoisingModule, pl_module).draws.parts = parts
        self._restored = None


class FlushLogs(Callback):
    """Writes down what was logged before a checkpoint is: a killed run has lost none of what came before its checkpoint."""

    def on_save_checkpoint(self, trainer: L.Trainer, pl_module: L.LightningModule, checkpoint: dict[str, Any]) -> None:
        for logger in trainer.loggers:
            logger.save()
            if isinstance(logger, TensorBoardLogger) and trainer.is_global_zero:
                logger.experiment.flush()


class EndInOrder(Callback):
    """On SIGTERM, SIGUSR1 (a cluster's warning that the time is almost up) or Ctrl-C the training saves a checkpoint after its
    present step and ends; at a second one it ends at once.
    """

    def __init__(self, checkpoint: Path) -> None:
        self._checkpoint = checkpoint
        self._received: int | None = None
        self._saved = False
        self.begun = False
        """Whether the training has begun; before, what goes wrong is the checkpoint's fault."""
        self._before: dict[int, Any] = {}

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self.begun = True
        if threading.current_thread() is threading.main_thread():  # only there can signals be taken
            self._before = {number: signal.signal(number, self._note) for number in _taken()}

    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        received = self._received is not None
        if trainer.world_size > 1:  # all or none: a process that went on alone would wait for the others for ever
            if trainer.global_step % trainer.log_every_n_steps:  # type: ignore[attr-defined]
                return
            received = trainer.strategy.reduce_boolean_decision(received, all=False)
        # gradients that wait for more are in no checkpoint, and Lightning does not count an epoch as ended here
        between = trainer.fit_loop._should_accumulate() or (trainer.is_last_batch and trainer.num_training_batches > 1)
        if received and not between:
            trainer.save_checkpoint(self._checkpoint, weights_only=False)
            self._saved = True

    def on_train_batch_start(self, trainer: L.Trainer, pl_module: L.LightningModule, batch: Any, batch_idx: int) -> None:
        if self._saved:  # not before: what the step has logged is written after its end
            raise InterruptedTraining(self._received or signal.SIGTERM, trainer.global_step)

    def on_exception(self, trainer: L.Trainer, pl_module: L.LightningModule, exception: BaseException) -> None:
        self._restore()

    def on_train_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self._restore()

    def _note(self, number: int, frame: FrameType | None) -> None:
        if self._received is not None:
            self._restore()
            raise KeyboardInterrupt
        self._received = number
        print("\nEnding after this step (once more: at once).", flush=True)

    def _restore(self) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)
        self._before = {}


def _taken() -> list[signal.Signals]:
    """SIGUSR1 only where no one else waits for it, as a launcher does, and Windows has none."""
    warning = [signal.SIGUSR1] if hasattr(signal, "SIGUSR1") and signal.getsignal(signal.SIGUSR1) == signal.SIG_DFL else []
    return [signal.SIGINT, signal.SIGTERM, *warning]


@contextmanager
def quiet_threads() -> Iterator[None]:
    """Keeps threads from printing that the disk is full: TensorBoard's writer hands its error to the next one that logs."""
    before = threading.excepthook

    def note(arguments: threading.ExceptHookArgs) -> None:
        if not isinstance(arguments.exc_value, OSError):
            before(arguments)

    threading.excepthook = note
    try:
        yield
    finally:
        threading.excepthook = before
