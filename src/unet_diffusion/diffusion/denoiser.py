"""The denoiser: network + schedule + prediction. Whatever the network was asked for, it answers with a clean image."""

import torch.nn.functional as F
from torch import Tensor, nn

from unet_diffusion.diffusion.predictions import Prediction
from unet_diffusion.diffusion.schedules import Schedule


class Denoiser(nn.Module):
    """Sees through noise: called with a noisy image and its level, it answers with the clean image it guesses.

    Args:
        net: called as `net(xt, t, label)`; xt is (B, C, H, W), t is (B,), label is (B,) class numbers or None.
        schedule: how images and noise are mixed.
        prediction: what the network's output means.
    """

    def __init__(self, net: nn.Module, schedule: Schedule, prediction: Prediction) -> None:
        super().__init__()
        self.net = net
        self.schedule = schedule
        self.prediction = prediction

    def forward(self, xt: Tensor, t: Tensor, label: Tensor | None = None) -> Tensor:
        """The guessed clean image x0_hat, (B, C, H, W); not clipped to [-1, 1]."""
        return self.prediction.x0_hat(self.net(xt, t, label), xt, t)

    def loss(self, x0: Tensor, eps: Tensor, t: Tensor, label: Tensor | None = None) -> Tensor:
        """Mean squared error between the network's answer at `mix(x0, eps, t)` and its target; a scalar."""
        answer = self.net(self.schedule.mix(x0, eps, t), t, label)
        return F.mse_loss(answer, self.prediction.target(x0, eps, t))
