"""What lets a training end at any moment and go on later as if nothing had been."""

import signal
import threading
import time
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
        """The generators' states, as byte tensors: the first process's, which those of all others equal."""
        state = {"cpu": torch.get_rng_state()}
        if torch.cuda.is_available():
            state["cuda"] = torch.cuda.get_rng_state()
        if torch.backends.mps.is_available():
            state["mps"] = torch.mps.get_rng_state()
        return state

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self._restored = state_dict

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """As late as can be: nothing is to draw between this and the first step."""
        if self._restored is None:
            return
        torch.set_rng_state(self._restored["cpu"])
        if "cuda" in self._restored and torch.cuda.is_available():
            torch.cuda.set_rng_state(self._restored["cuda"])
        if "mps" in self._restored and torch.backends.mps.is_available():
            torch.mps.set_rng_state(self._restored["mps"])
        self._restored = None


class TimeTrained(Callback):
    """Adds up the seconds of a run over all its stretches; of one that was cut off, those up to its last checkpoint."""

    def __init__(self) -> None:
        self._before = 0.0
        self._since = time.perf_counter()

    @property
    def seconds(self) -> float:
        """Since the run began, less its rests."""
        return self._before + time.perf_counter() - self._since

    def on_fit_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self._since = time.perf_counter()

    def state_dict(self) -> dict[str, float]:
        """What was trained for so far."""
        return {"seconds": self.seconds}

    def load_state_dict(self, state_dict: dict[str, float]) -> None:
        self._before = state_dict["seconds"]


class PlaceInEpoch(Callback):
    """Lets the loader go on where it was.

    Where `trainer.max_epochs` is set, its length is asked for, and with it it is set up, before Lightning has read its state.
    """

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        trainer.fit_loop._load_combined_loader_states()


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
        self._agreed = False
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
        if trainer.world_size == 1:
            self._agreed = self._received is not None
        elif not self._agreed and trainer.global_step % trainer.log_every_n_steps == 0:  # type: ignore[attr-defined]
            # all or none: a process that went on alone would wait for the others for ever
            self._agreed = trainer.strategy.reduce_boolean_decision(self._received is not None, all=False)
        waiting = trainer.world_size > 1 and trainer.fit_loop._should_accumulate()  # see UnfinishedStep
        # Lightning does not count an epoch as ended here
        if self._agreed and not waiting and not (trainer.is_last_batch and trainer.num_training_batches > 1):
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
