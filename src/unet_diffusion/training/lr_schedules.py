"""Learning-rate schedules: a factor for `optimizer.lr` as a function of the training progress.

The training progress instead of the step, so that the learning rate also reaches zero in trainings
that are limited by time.
"""

import math
from abc import ABC, abstractmethod
from typing import Annotated

import lightning as L
from lightning.pytorch.callbacks import Timer
from pydantic import Field, validate_call

from unet_diffusion.errors import STRICT

Fraction = Annotated[float, Field(ge=0, le=1)]


class LRSchedule(ABC):
    """A factor for the learning rate, with a warm-up for a fraction of the training."""

    @validate_call(config=STRICT)
    def __init__(self, warmup: Fraction = 0.03) -> None:
        self.warmup = warmup

    @abstractmethod
    def factor(self, progress: float) -> float:
        """The factor in [0, 1] at a training progress in [0, 1]."""

    def decay_progress(self, progress: float) -> float:
        """Progress in [0, 1] of the part after the warm-up."""
        return min(1.0, (progress - self.warmup) / (1 - self.warmup)) if self.warmup < 1 else 0.0


class OneCycleLRSchedule(LRSchedule):
    """Cosine warm-up from the factor `start`, and cosine decay to zero.

    Smith and Topin 2018, "Super-Convergence".
    """

    @validate_call(config=STRICT)
    def __init__(self, warmup: Fraction = 0.3, start: Fraction = 0.04) -> None:
        super().__init__(warmup)
        self.start = start

    def factor(self, progress: float) -> float:
        if progress < self.warmup:
            rise = (1 - math.cos(math.pi * progress / self.warmup)) / 2
            return self.start + (1 - self.start) * rise
        return (1 + math.cos(math.pi * self.decay_progress(progress))) / 2


class LinearLRSchedule(LRSchedule):
    """Linear warm-up and linear decay to zero (Bergsma et al. 2025, "Straight to Zero")."""

    def factor(self, progress: float) -> float:
        if progress < self.warmup:
            return progress / self.warmup
        return 1 - self.decay_progress(progress)


def training_progress(trainer: L.Trainer) -> float:
    """Fraction of the training that is done, by steps or by time, whichever is larger."""
    progress = trainer.global_step / trainer.estimated_stepping_batches
    for callback in trainer.callbacks:  # type: ignore[attr-defined]
        if isinstance(callback, Timer) and (remaining := callback.time_remaining()) is not None:
            elapsed = callback.time_elapsed()
            progress = max(progress, elapsed / (elapsed + remaining))
            if trainer.world_size > 1:  # clocks, and with them learning rates, would differ
                progress = trainer.strategy.broadcast(progress)
    return min(progress, 1.0)
