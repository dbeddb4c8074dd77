"""A moving average of the weights over the training; it draws better than the weights of any one step."""

from typing import Any

import lightning as L
import torch
from lightning.pytorch.callbacks import WeightAveraging
from torch import Tensor

from unet_diffusion.checks import number


class EMA(WeightAveraging):
    """Exponential moving average, used for validation, pictures, the checkpoint's `state_dict` and the test.

    The live weights stay in the checkpoint as `current_model_state`. Parameters alone are averaged; BatchNorm's running
    statistics follow the live network.

    Args:
        decay: share of the average that each step keeps, in [0, 1); it rises to this as (1 + steps) / (10 + steps), so that a
            short training does not average in its first steps.

    Raises:
        ValueError: `decay` is out of its range.
    """

    def __init__(self, decay: float = 0.999) -> None:
        if number("decay", decay, low=0.0, high=1.0) == 1:
            raise ValueError("decay=1 would never learn: give a share below 1, such as decay=0.999")
        self.decay = decay
        super().__init__(use_buffers=False, multi_avg_fn=self._average)

    def setup(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        # the module is still on the CPU here; its average must not stay there when it moves
        self._device = trainer.strategy.root_device
        super().setup(trainer, pl_module, stage)

    def on_load_checkpoint(self, trainer: L.Trainer, pl_module: L.LightningModule, checkpoint: dict[str, Any]) -> None:
        # Lightning's would put the live weights back for a test that follows a fit in the same process
        if trainer.state.fn == "fit":
            super().on_load_checkpoint(trainer, pl_module, checkpoint)

    def _average(self, averaged: list[Tensor], live: list[Tensor], steps: Tensor | int) -> None:
        kept = min(self.decay, (1 + int(steps)) / (10 + int(steps)))
        torch._foreach_lerp_(averaged, live, 1 - kept)
