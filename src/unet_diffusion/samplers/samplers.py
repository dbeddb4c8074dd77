"""Samplers: a loop over times from 1 to 0, and one `step` per interval for each sampler."""

import functools
import itertools
import math
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import ClassVar, Literal

import torch
from torch import Tensor

from unet_diffusion.diffusion.denoiser import CFGDenoiser, Denoiser

TimeGrid = Literal["uniform", "cosine"]
Clip = Literal["none", "static", "dynamic"]
TIME_GRIDS: dict[TimeGrid, Callable[[float], float]] = {
    "uniform": lambda u: u,
    "cosine": lambda u: 1 - math.sin(math.pi / 2 * (1 - u)),
}
"""Maps the remaining fraction of the steps to t; `cosine` is denser near t = 0."""


def dynamic_threshold(x0_hat: Tensor) -> Tensor:
    """Clips each image to [-p, p], p the 99.5th percentile of its magnitudes, and divides it by p.

    Saharia et al. 2022, "Photorealistic Text-to-Image Diffusion Models with Deep Language
    Understanding", sec. 2.3. Images within [-1, 1] are unchanged.
    """
    limit = x0_hat.abs().flatten(1).quantile(0.995, dim=1).clamp(min=1)[:, None, None, None]
    return x0_hat.clamp(-limit, limit) / limit


CLIPS: dict[Clip, Callable[[Tensor], Tensor]] = {
    "none": lambda x0_hat: x0_hat,
    "static": lambda x0_hat: x0_hat.clamp(-1, 1),
    "dynamic": dynamic_threshold,
}
"""Thresholding of x0_hat (B, C, H, W)."""


@dataclass
class SamplerOutput:
    """The result of `Sampler.sample`."""

    images: Tensor  # (B, C, H, W), about [-1, 1], not clipped
    nfe: int  # network evaluations per image
    trajectory: list[Tensor]  # xt at every time, from the start to `images`; empty unless requested


@dataclass
class StepDenoiser:
    """The denoiser as a sampler step uses it: labels bound, x0_hat clipped, evaluations counted."""

    denoiser: Denoiser | CFGDenoiser
    label: Tensor | None
    clip: Callable[[Tensor], Tensor]
    fresh_noise: Callable[[], Tensor]  # returns standard Gaussian noise like xt at each call
    nfe: int = 0

    def __call__(self, xt: Tensor, t: float) -> tuple[Tensor, Tensor]:
        """Predicts (x0_hat, eps_hat) with xt = alpha * x0_hat + sigma * eps_hat."""
        self.nfe += self.denoiser.nfe_per_call
        x0_hat = self.clip(self.denoiser(xt, xt.new_full((len(xt),), t), self.label))
        alpha, sigma = self.coefficients(t)
        return x0_hat, (xt - alpha * x0_hat) / sigma

    def average_velocity(self, xt: Tensor, t: float, s: float) -> Tensor:
        """Average velocity of the path from time `t` to `s`, see `Denoiser.average_velocity`."""
        self.nfe += self.denoiser.nfe_per_call
        times = xt.new_full((len(xt),), t)
        return self.denoiser.average_velocity(xt, times, torch.full_like(times, s), self.label)

    def coefficients(self, t: float) -> tuple[float, float]:
        """(alpha, sigma) at time t."""
        time, schedule = torch.tensor(t, dtype=torch.float64), self.denoiser.schedule
        return float(schedule.alpha(time)), float(schedule.sigma(time))


History = list[tuple[Tensor, float]]
"""x0_hat and t of the earlier steps of a trajectory, which multistep samplers append."""


@dataclass(frozen=True)
class Sampler(ABC):
    """Integrates from noise at t = 1 to an image at t = 0. Subclasses define one step.

    Args:
        steps: number of steps, 1 to 10,000.
        time_grid: a key of `TIME_GRIDS`.
        clip: a key of `CLIPS`, applied to every x0_hat.
    """

    steps: int
    time_grid: TimeGrid = "uniform"
    clip: Clip = "none"

    needs_average_velocity: ClassVar[bool] = False

    def __post_init__(self) -> None:
        if not 1 <= self.steps <= 10_000:
            raise ValueError(f"steps={self.steps}: expected a number from 1 to 10000.")

    @abstractmethod
    def step(
        self, denoiser: StepDenoiser, xt: Tensor, t: float, s: float, history: History
    ) -> Tensor:
        """Maps xt (B, C, H, W) at time t to xs at time s < t."""

    def times(self, start: float = 1.0) -> list[float]:
        """The time grid, decreasing from `start` to 0, with steps + 1 values."""
        grid = TIME_GRIDS[self.time_grid]
        return [start * grid(1 - i / self.steps) for i in range(self.steps + 1)]

    @torch.inference_mode()
    def sample(
        self,
        denoiser: Denoiser | CFGDenoiser,
        xt: Tensor,
        label: Tensor | None = None,
        *,
        start: float = 1.0,
        fresh_noise: Callable[[], Tensor] | None = None,
        return_trajectory: bool = False,
    ) -> SamplerOutput:
        """Generates images from noise, or from noisy images at an intermediate time.

        Args:
            denoiser: in eval mode.
            xt: standard Gaussian noise (B, C, H, W) for start = 1, else noisy images at `start`.
            label: class labels (B,), -1 for the null class; None for unconditional networks.
            start: time of `xt`, in (0, 1].
            fresh_noise: returns standard Gaussian noise like `xt` at each call, for stochastic
                samplers; torch.randn_like by default.
            return_trajectory: keep xt after every step.
        """
        fresh_noise = fresh_noise or functools.partial(torch.randn_like, xt)
        step_denoiser = StepDenoiser(denoiser, label, CLIPS[self.clip], fresh_noise)
        if start == 1:
            xt = step_denoiser.coefficients(1.0)[1] * xt
        trajectory = [xt] if return_trajectory else []
        history: History = []
        for t, s in itertools.pairwise(self.times(start)):
            xt = self.step(step_denoiser, xt, t, s, history)
            trajectory += [xt] if return_trajectory else []
        return SamplerOutput(xt, step_denoiser.nfe, trajectory)


@dataclass(frozen=True)
class DDIMSampler(Sampler):
    """x_s = alpha_s * x0_hat + sqrt(sigma_s**2 - std**2) * eps_hat + std * noise. First order.

    Song et al. 2021, "Denoising Diffusion Implicit Models", eq. 12 and 16, for any schedule; one
    evaluation per step. With eta = 0 on the linear schedule it is Euler's method on the velocity.
    `eta` in [0, 1] is the amount of fresh noise: 0 is deterministic, 1 is DDPM's ancestral sampling
    (Ho et al. 2020, alg. 2), which needs many steps. A single step returns x0_hat of pure noise, as
    in the lesson.
    """

    steps: int = 20
    eta: float = 0.0

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 <= self.eta <= 1:
            raise ValueError(f"eta={self.eta}: expected a value in [0, 1].")

    def step(
        self, denoiser: StepDenoiser, xt: Tensor, t: float, s: float, history: History
    ) -> Tensor:
        x0_hat, eps_hat = denoiser(xt, t)
        alpha_s, sigma_s = denoiser.coefficients(s)
        if s == 0 or self.eta == 0:
            return alpha_s * x0_hat + sigma_s * eps_hat
        alpha_t, sigma_t = denoiser.coefficients(t)
        # eq. 16: standard deviation of x_s given xt and x0
        ratio = alpha_t * sigma_s / (alpha_s * sigma_t)
        std = self.eta * sigma_s * math.sqrt(max(0.0, 1 - ratio**2))
        eps_scale = math.sqrt(max(0.0, sigma_s**2 - std**2))
        return alpha_s * x0_hat + eps_scale * eps_hat + std * denoiser.fresh_noise()


@dataclass(frozen=True)
class HeunSampler(Sampler):
    """An Euler step, then a correction with the mean slope. Second order, 2 * steps - 1 NFE.

    Karras et al. 2022, "Elucidating the Design Space of Diffusion-Based Generative Models", alg. 1,
    written for any schedule as dx = x0_hat d alpha + eps_hat d sigma. The last step is Euler's, as
    eps_hat is undefined at t = 0.
    """

    def step(
        self, denoiser: StepDenoiser, xt: Tensor, t: float, s: float, history: History
    ) -> Tensor:
        x0_t, eps_t = denoiser(xt, t)
        (alpha_t, sigma_t), (alpha_s, sigma_s) = denoiser.coefficients(t), denoiser.coefficients(s)
        d_alpha, d_sigma = alpha_s - alpha_t, sigma_s - sigma_t
        euler = xt + d_alpha * x0_t + d_sigma * eps_t
        if s == 0:
            return euler
        x0_s, eps_s = denoiser(euler, s)
        return xt + d_alpha * (x0_t + x0_s) / 2 + d_sigma * (eps_t + eps_s) / 2


@dataclass(frozen=True)
class DPMSolverSampler(Sampler):
    """DPM-Solver++ 2M: a DDIM step with a linear extrapolation of x0_hat. Second order, 1 NFE/step.

    Lu et al. 2022, "DPM-Solver++", alg. 2: x_s = r * xt + (alpha_s - r * alpha_t) * extrapolated
    with r = sigma_s / sigma_t. The paper extrapolates over log(alpha / sigma), which is infinite
    at t = 0 and, with zero terminal SNR, at t = 1; this class extrapolates over the angle of
    (alpha, sigma), so that only the first and the last step are of first order.
    """

    def step(
        self, denoiser: StepDenoiser, xt: Tensor, t: float, s: float, history: History
    ) -> Tensor:
        x0_hat, _ = denoiser(xt, t)
        (alpha_t, sigma_t), (alpha_s, sigma_s) = denoiser.coefficients(t), denoiser.coefficients(s)
        extrapolated = x0_hat
        if history and s > 0:
            x0_previous, t_previous = history[-1]
            alpha_previous, sigma_previous = denoiser.coefficients(t_previous)
            angle_previous = math.atan2(sigma_previous, alpha_previous)
            angle_t, angle_s = math.atan2(sigma_t, alpha_t), math.atan2(sigma_s, alpha_s)
            ratio = (angle_s - angle_t) / (angle_t - angle_previous)
            extrapolated = x0_hat + ratio / 2 * (x0_hat - x0_previous)
        history[:] = [(x0_hat, t)]
        r = sigma_s / sigma_t
        return r * xt + (alpha_s - r * alpha_t) * extrapolated


@dataclass(frozen=True)
class AverageVelocitySampler(Sampler):
    """xs = xt - (t - s) * u(xt, s, t) with the average velocity u: one step is enough.

    Geng et al. 2025, "Mean Flows for One-step Generative Modeling", eq. 12, for networks that are
    trained with the objective `average_velocity`; one evaluation per step.
    """

    clip: Clip = field(default="none", init=False, repr=False)  # there is no x0_hat

    needs_average_velocity: ClassVar[bool] = True

    def step(
        self, denoiser: StepDenoiser, xt: Tensor, t: float, s: float, history: History
    ) -> Tensor:
        return xt - (t - s) * denoiser.average_velocity(xt, t, s)
