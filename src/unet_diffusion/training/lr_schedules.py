"""Learning-rate schedules: the share of `optimizer.lr` to use, as a function of how much of the training is done.

They see progress, not steps, so that one that ends at zero does so whether steps or a time limit end the run.
"""

import math
from abc import ABC, abstractmethod

import lightning as L
from lightning.pytorch.callbacks import Timer

from unet_diffusion.checks import fraction


class LRSchedule(ABC):
    """A factor for the learning rate."""

    @abstractmethod
    def factor(self, progress: float) -> float:
        """The factor, in [0, 1], when a share `progress` in [0, 1] of the training is done."""


class Constant(LRSchedule):
    """`optimizer.lr` throughout."""

    def factor(self, progress: float) -> float:
        return 1.0


class OneCycle(LRSchedule):
    """Up to `optimizer.lr` and down to zero, both along half a cosine (Smith and Topin 2018, "Super-Convergence").

    Args:
        warmup: share of the training in which the rate rises, in [0, 1].
        start: factor at the beginning, in [0, 1].

    Raises:
        ValueError: an argument is not a fraction.
    """

    def __init__(self, warmup: float = 0.2, start: float = 0.04) -> None:
        self.warmup = fraction("warmup", warmup)
        self.start = fraction("start", start)

    def factor(self, progress: float) -> float:
        if progress < self.warmup:
            return self.start + (1 - self.start) * (1 - math.cos(math.pi * progress / self.warmup)) / 2
        falling = (progress - self.warmup) / (1 - self.warmup) if self.warmup < 1 else 0.0
        return (1 + math.cos(math.pi * min(falling, 1.0))) / 2


class Linear(LRSchedule):
    """Up to `optimizer.lr` and down to zero, both along straight lines (Bergsma et al. 2025, "Straight to Zero").

    Args:
        warmup: share of the training in which the rate rises from zero, in [0, 1].

    Raises:
        ValueError: it is not a fraction.
    """

    def __init__(self, warmup: float = 0.03) -> None:
        self.warmup = fraction("warmup", warmup)

    def factor(self, progress: float) -> float:
        if progress < self.warmup:
            return progress / self.warmup
        return (1 - min(progress, 1.0)) / (1 - self.warmup) if self.warmup < 1 else 1.0


def training_progress(trainer: L.Trainer) -> float:
    """Share of the training that is done, in [0, 1]: of its steps or of `max_time`, whichever is further on."""
    done = trainer.global_step / trainer.estimated_stepping_batches
    for callback in trainer.callbacks:  # type: ignore[attr-defined]
        if isinstance(callback, Timer) and (left := callback.time_remaining()) is not None:
            elapsed = callback.time_elapsed()
            done = max(done, elapsed / (elapsed + left))
            if trainer.world_size > 1:  # clocks differ, and with them learning rates would
                done = trainer.strategy.broadcast(done)
    return min(done, 1.0)
