"""The moving average of the weights."""

from typing import Annotated

import torch
from pydantic import Field, validate_call
from torch import nn

from unet_diffusion.errors import STRICT


class EMA:
    """Exponential moving average of the weights, used for validation, previews and sampling.

    Parameters are averaged; buffers, such as BatchNorm's statistics, are those of the raw model.

    Args:
        decay: fraction of the average that a step keeps, in [0, 1). It grows to this value as
            step / (9 + step), so that the first steps have little weight.
    """

    @validate_call(config=STRICT)
    def __init__(self, decay: Annotated[float, Field(ge=0, lt=1)] = 0.999) -> None:
        self.decay = decay

    # torch's AveragedModel has a step counter on the device, for which a GPU waits.
    @torch.no_grad()
    def update(self, average: nn.Module, model: nn.Module, step: int) -> None:
        """Updates the `average` with the weights of the `model` after a step, at least 1."""
        decay = min(self.decay, step / (9 + step)) if step > 1 else 0.0
        torch._foreach_lerp_(list(average.parameters()), list(model.parameters()), 1 - decay)
        for averaged, buffer in zip(average.buffers(), model.buffers(), strict=True):
            averaged.copy_(buffer)
