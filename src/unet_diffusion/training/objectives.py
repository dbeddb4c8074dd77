"""Objectives: the loss of a training step."""

from typing import Annotated, Any, NamedTuple

import torch
from pydantic import Field, PositiveInt
from torch import Tensor

from unet_diffusion.diffusion.denoiser import CFGDenoiser, Denoiser
from unet_diffusion.diffusion.predictions import UniformWeighting, VelocityPrediction
from unet_diffusion.diffusion.schedules import LinearSchedule
from unet_diffusion.samplers.samplers import Sampler

Fraction = Annotated[float, Field(ge=0, le=1)]


class NoisyBatch(NamedTuple):
    """Images, noise and times of a training step."""

    x0: Tensor  # clean images (B, C, H, W)
    eps: Tensor  # standard Gaussian noise of that shape
    t: Tensor  # times (B,) of the time distribution
    label: Tensor  # class labels (B,), -1 for the null class


class Objective:
    """A loss of the denoiser."""

    def check(self, denoiser: Denoiser) -> None:
        """Raises a ValueError if the loss is not defined for this denoiser."""

    def loss(self, denoiser: Denoiser, batch: NoisyBatch, ema: Denoiser, progress: float) -> Tensor:
        """The loss of a batch, a scalar.

        Args:
            denoiser: with the weights that are trained.
            batch: images, noise and times.
            ema: the denoiser with EMA weights, or `denoiser` itself without an EMA.
            progress: fraction of the training that is done, in [0, 1].
        """
        raise NotImplementedError

    def state_dict(self) -> dict[str, Any]:
        """What a resumed training needs."""
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restores the result of `state_dict`."""


class DenoisingObjective(Objective):
    """The weighted mean squared error of the model output at xt = add_noise(x0, eps, t)."""

    def loss(self, denoiser: Denoiser, batch: NoisyBatch, ema: Denoiser, progress: float) -> Tensor:
        return denoiser.loss(*batch)


class AverageVelocityObjective(Objective):
    """Flow matching, then distillation of the network's own trajectories to average velocities.

    The network learns u(xt, s, t), the average velocity of the path from time t to s < t (Geng et
    al. 2025, "Mean Flows for One-step Generative Modeling", eq. 3), so that
    xs = xt - (t - s) * u(xt, s, t). With s = t it is the velocity of flow matching, whose loss is
    used until `start`, and for the rest of each batch after it. Then a fraction of each batch is
    fresh noise: `teacher` integrates it to images with the EMA weights, and two times t > s of this
    trajectory give the target (xt - xs) / (t - s), as in the distillation of Luhman and Luhman
    2021, "Knowledge Distillation in Iterative Generative Models". The trajectory is a function of
    the noise, so the target has no variance that the mean squared error would average over.

    Args:
        teacher: sampler of the trajectories.
        start: training progress at which the distillation starts.
        distillation_fraction: fraction of each batch for the distillation, in (0, 1].
        one_step_fraction: fraction of these images with (s, t) = (0, 1); those of the others are
            any two times of the trajectory.
        guidance_scale: classifier-free guidance of the trajectories, at least 1 (off).
        reuse: steps for which each trajectory is used; at least 1.
    """

    def __init__(
        self,
        teacher: Sampler,
        start: Fraction = 0.5,
        distillation_fraction: Annotated[float, Field(gt=0, le=1)] = 0.5,
        one_step_fraction: Fraction = 0.6,
        guidance_scale: Annotated[float, Field(ge=1)] = 1.0,
        reuse: PositiveInt = 4,
    ) -> None:
        self.teacher = teacher
        self.start = start
        self.distillation_fraction = distillation_fraction
        self.one_step_fraction = one_step_fraction
        self.guidance_scale = guidance_scale
        self.reuse = reuse
        self._buffer: list[tuple[Tensor, Tensor]] = []  # (trajectories, labels) of the last steps

    def check(self, denoiser: Denoiser) -> None:
        is_velocity = isinstance(denoiser.prediction, VelocityPrediction)
        if not is_velocity or not isinstance(denoiser.schedule, LinearSchedule):
            raise ValueError(
                "objective=average_velocity: requires prediction=velocity and schedule=linear."
            )
        if not denoiser.has_average_velocity:
            raise ValueError(
                "objective=average_velocity: requires model=unet model.interval_embedding=true."
            )
        if not isinstance(denoiser.weighting, UniformWeighting):
            raise ValueError("objective=average_velocity: requires weighting=null.")

    def loss(self, denoiser: Denoiser, batch: NoisyBatch, ema: Denoiser, progress: float) -> Tensor:
        if progress < self.start:
            return denoiser.loss(*batch)
        x0, eps, flow_times, flow_label = batch
        t, s, label = flow_times.clone(), flow_times.clone(), flow_label.clone()
        xt = denoiser.schedule.add_noise(x0, eps, t)
        target = denoiser.prediction.target(denoiser.schedule, x0, eps, t)
        size = max(1, round(self.distillation_fraction * len(x0) / self.reuse))
        rows = torch.randperm(len(x0), device=x0.device)[:size]
        new = self.generate(ema, torch.randn_like(eps[rows]), label[rows])
        buffer = [(a.to(x0.device), b.to(x0.device)) for a, b in (*self._buffer, new)]
        self._buffer = buffer[-self.reuse :]
        trajectories, labels = (torch.cat(each, dim=-1) for each in zip(*self._buffer, strict=True))
        distilled = torch.randperm(len(x0), device=x0.device)[: len(labels)]
        points = self.sample_points(trajectories)
        xt[distilled], t[distilled], s[distilled], target[distilled] = points
        label[distilled] = labels
        model_output = denoiser.model_output(xt, t, label, s)
        return (model_output - target).square().mean()

    def state_dict(self) -> dict[str, Any]:
        return {"buffer": self._buffer}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self._buffer = [tuple(each) for each in state["buffer"]]

    @torch.no_grad()
    def generate(self, ema: Denoiser, eps: Tensor, label: Tensor) -> tuple[Tensor, Tensor]:
        """Trajectories (C, H, W, steps + 1, B) from noise (B, C, H, W), and their labels (B,)."""
        training = ema.training
        ema.eval()  # no dropout
        denoiser = CFGDenoiser(ema, self.guidance_scale)
        output = self.teacher.sample(denoiser, eps, label, return_trajectory=True)
        ema.train(training)
        # A copy, because inference tensors cannot be part of a graph.
        return torch.stack(output.trajectory).permute(2, 3, 4, 0, 1).clone(), label

    def sample_points(self, trajectories: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """(xt, t, s, target) at two random times of each trajectory (C, H, W, steps + 1, B)."""
        device, n = trajectories.device, trajectories.size(-1)
        times = torch.tensor(self.teacher.times(), dtype=trajectories.dtype, device=device)
        two_indices = torch.rand(n, len(times), device=device).argsort(dim=1)[:, :2]
        i, j = two_indices.sort(dim=1).values.unbind(1)
        one_step = torch.rand(n, device=device) < self.one_step_fraction
        i, j = i.masked_fill(one_step, 0), j.masked_fill(one_step, len(times) - 1)
        rows = torch.arange(n, device=device)
        xt, xs = (trajectories[..., k, rows].movedim(-1, 0) for k in (i, j))
        return xt, times[i], times[j], (xt - xs) / (times[i] - times[j])[:, None, None, None]
