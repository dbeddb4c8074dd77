"""Samplers turn noise into images by asking a denoiser. They share one loop; a sampler is one step of it."""

import functools
import itertools
import math
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass, field

import torch
from torch import Tensor

from unet_diffusion.checks import one_of, whole_number
from unet_diffusion.diffusion.denoiser import DenoiserLike
from unet_diffusion.diffusion.schedules import Schedule
from unet_diffusion.samplers.clipping import CLIPPINGS

GRIDS: dict[str, Callable[[float], float]] = {
    "uniform": lambda u: u,
    "cosine": lambda u: 1 - math.cos(math.pi / 2 * u) if u < 1 else 1.0,
    "quadratic": lambda u: u**2,
    "late": lambda u: u / (3 - 2 * u),
    "early": lambda u: 3 * u / (1 + 2 * u),
}
"""Time grids: where in [0, 1] the level is, when a share `u` of the steps is left; each goes from 1 to 0."""


@dataclass
class Drawn:
    """What a sampler returns."""

    images: Tensor
    """(B, C, H, W), about [-1, 1]; not clipped."""
    nfe: int
    """Network evaluations that each image cost."""
    trajectory: list[Tensor] = field(default_factory=list)
    """The noisy images at every level of the grid, from the first to `images`; empty unless asked for."""


class Asked:
    """The denoiser as a sampler's step sees it: its guesses clipped and its evaluations counted."""

    def __init__(self, denoiser: DenoiserLike, clip: Callable[[Tensor], Tensor]) -> None:
        self._denoiser = denoiser
        self._clip = clip
        self.schedule: Schedule = denoiser.schedule
        self.nfe = 0

    def __call__(self, xt: Tensor, t: float, label: Tensor | None) -> tuple[Tensor, Tensor]:
        """(x0_hat, eps_hat) at level `t`: the clean image it guesses, and the noise that then is in `xt`."""
        self.nfe += self._denoiser.evaluations
        x0_hat = self._clip(self._denoiser(xt, xt.new_full((len(xt),), t), label))
        alpha, sigma = self.at(t)
        return x0_hat, (xt - alpha * x0_hat) / sigma

    def at(self, t: float) -> tuple[float, float]:
        """alpha and sigma at level `t`."""
        level = torch.tensor(t, dtype=torch.float64)
        return float(self.schedule.alpha(level)), float(self.schedule.sigma(level))


class Sampler(ABC):
    """The shared loop: from noise down a grid of levels to an image at t = 0.

    Args:
        steps: how many steps, 1 to 10,000.
        grid: how the levels lie: `uniform`, more of them near the image (`cosine`, `quadratic`, `late`), or more near the noise
            (`early`).
        clipping: of every guess x0_hat: `none`, `static` (to [-1, 1]) or `dynamic` (each image by its own range).

    Raises:
        ValueError: an argument out of its range.
    """

    def __init__(self, steps: int, grid: str = "uniform", clipping: str = "none") -> None:
        self.steps = whole_number("steps", steps, at_least=1, at_most=10_000)
        self.grid = one_of("grid", grid, GRIDS)
        self.clipping = one_of("clipping", clipping, CLIPPINGS)

    @abstractmethod
    def step(self, ask: Asked, x: Tensor, t: float, s: float, label: Tensor | None, noise: Callable[[], Tensor]) -> Tensor:
        """From the noisy image at level `t` to the one at the lower level `s`; `noise()` is fresh noise of the shape of `x`."""

    def begin(self) -> None:  # noqa: B027 - most remember nothing
        """Called before the first step; a sampler that remembers earlier steps forgets them here."""

    def levels(self, start: float = 1.0) -> list[float]:
        """The grid of noise levels, falling from `start` to 0; one step between each two."""
        return [start * GRIDS[self.grid](1 - i / self.steps) for i in range(self.steps + 1)]

    @torch.inference_mode()
    def run(
        self,
        denoiser: DenoiserLike,
        x: Tensor,
        label: Tensor | None = None,
        *,
        start: float = 1.0,
        noise: Callable[[], Tensor] | None = None,
        keep: bool = False,
    ) -> Drawn:
        """Images from the noisy images `x` (B, C, H, W).

        Args:
            denoiser: in eval mode.
            x: noisy images at the level `start`.
            label: class numbers (B,), -1 for none; None for networks without classes.
            start: noise level of `x`, in (0, 1].
            noise: gives fresh standard Gaussian noise like `x` at each call, for samplers that add some; default: torch's.
            keep: return the trajectory too.
        """
        ask = Asked(denoiser, CLIPPINGS[self.clipping])
        trajectory = [x] if keep else []
        fresh = noise or functools.partial(torch.randn_like, x)
        self.begin()
        for t, s in itertools.pairwise(self.levels(start)):
            x = self.step(ask, x, t, s, label, fresh)
            trajectory += [x] if keep else []
        return Drawn(x, ask.nfe, trajectory)

    def sample(self, denoiser: DenoiserLike, eps: Tensor, label: Tensor | None = None) -> Tensor:
        """Images (B, C, H, W) drawn from standard Gaussian noise `eps` of that shape; not clipped to [-1, 1]."""
        return self.run(denoiser, self.first(denoiser.schedule, eps), label).images

    def first(self, schedule: Schedule, eps: Tensor) -> Tensor:
        """What drawing starts from at t = 1: noise of strength sigma(1)."""
        return float(schedule.sigma(torch.ones((), dtype=torch.float64))) * eps
