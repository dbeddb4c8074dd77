"""The denoiser: network + schedule + prediction. Whatever the network was asked for, it answers with a clean image."""

from typing import Protocol

from torch import Tensor, nn

from unet_diffusion.diffusion.predictions import Prediction
from unet_diffusion.diffusion.schedules import Schedule
from unet_diffusion.diffusion.weightings import Unweighted, Weighting


class DenoiserLike(Protocol):
    """What a sampler asks: a `Denoiser`, a guided one, or an oracle in a test."""

    schedule: Schedule
    evaluations: int
    """Network evaluations that one call costs an image."""

    def __call__(self, xt: Tensor, t: Tensor, label: Tensor | None = None, /) -> Tensor:
        """x0_hat, (B, C, H, W), for noisy images of that shape at levels `t` (B,)."""
        ...


class Denoiser(nn.Module):
    """Sees through noise: called with a noisy image and its level, it answers with the clean image it guesses.

    Args:
        net: called as `net(xt, t, label)`; xt is (B, C, H, W), t is (B,), label is (B,) class numbers (-1: none) or None.
        schedule: how images and noise are mixed.
        prediction: what the network's output means.
        weighting: how much each level counts in the loss.

    Raises:
        ValueError: the prediction does not go with the schedule.
    """

    evaluations = 1

    def __init__(self, net: nn.Module, schedule: Schedule, prediction: Prediction, weighting: Weighting | None = None) -> None:
        super().__init__()
        prediction.check(schedule)
        self.net = net
        self.schedule = schedule
        self.prediction = prediction
        self.weighting = weighting or Unweighted()

    @property
    def num_classes(self) -> int:
        """How many classes the network can be told, 0 for none."""
        return int(getattr(self.net, "num_classes", 0))

    def forward(self, xt: Tensor, t: Tensor, label: Tensor | None = None) -> Tensor:
        """The guessed clean image x0_hat, (B, C, H, W); not clipped to [-1, 1]."""
        return self.prediction.x0_hat(self.schedule, self._answer(xt, t, label), xt, t)

    def losses(self, x0: Tensor, eps: Tensor, t: Tensor, label: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """What the network makes of `mix(x0, eps, t)`.

        Returns:
            The weighted mean squared error of its answer, (B,) an image each, and the clean image it guesses, (B, C, H, W).
        """
        xt = self.schedule.mix(x0, eps, t)
        answer = self._answer(xt, t, label)
        error = (answer - self.prediction.target(self.schedule, x0, eps, t)).square().mean(dim=(1, 2, 3))
        weighted = self.weighting.weight(self.schedule, self.prediction, t) * error
        return weighted, self.prediction.x0_hat(self.schedule, answer, xt, t)

    def loss(self, x0: Tensor, eps: Tensor, t: Tensor, label: Tensor | None = None) -> Tensor:
        """The weighted mean squared error over all images; a scalar."""
        return self.losses(x0, eps, t, label)[0].mean()

    def _answer(self, xt: Tensor, t: Tensor, label: Tensor | None) -> Tensor:
        """The network's output in the precision and the memory layout of images, whatever those of the network are."""
        answer: Tensor = self.net(xt, t, label).to(xt.dtype).contiguous()
        return answer
