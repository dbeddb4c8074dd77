"""Objectives: the loss of a training step."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Annotated, Any, NamedTuple

import torch
from pydantic import Field, PositiveInt
from torch import Tensor, nn

from unet_diffusion.diffusion.denoiser import CFGDenoiser, Denoiser
from unet_diffusion.diffusion.predictions import VelocityPrediction
from unet_diffusion.diffusion.schedules import LinearSchedule
from unet_diffusion.generation.pipeline import check_guidance
from unet_diffusion.samplers import Sampler
from unet_diffusion.training.lr_schedules import Fraction


class NoisyBatch(NamedTuple):
    """Images, noise and times of a training step."""

    x0: Tensor  # clean images (B, C, H, W)
    eps: Tensor  # standard Gaussian noise of that shape
    t: Tensor  # times (B,) of the time distribution
    label: Tensor  # class labels (B,), -1 for the null class

    def split(self, size: int) -> tuple["NoisyBatch", "NoisyBatch"]:
        """The first `size` images and the others."""
        first, others = zip(*((each[:size], each[size:]) for each in self), strict=True)
        return NoisyBatch(*first), NoisyBatch(*others)


class RegressionBatch(NamedTuple):
    """Images whose model output at (xt, t, label, s) is regressed to a target."""

    xt: Tensor  # (B, C, H, W)
    t: Tensor  # (B,)
    s: Tensor  # (B,), equal to t for the velocity
    label: Tensor  # (B,)
    target: Tensor  # (B, C, H, W)


class Objective:
    """A loss of the denoiser."""

    def check(self, denoiser: Denoiser, label_dropout: float) -> None:
        """Raises a ValueError if this denoiser cannot be trained with the loss."""

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


@dataclass(eq=False)
class AverageVelocityObjective(Objective):
    """Flow matching, then distillation of the network's own trajectories to average velocities.

    The network learns u(xt, s, t), the average velocity of the path from time t to s < t (Geng et
    al. 2025, "Mean Flows for One-step Generative Modeling", eq. 3), so that
    xs = xt - (t - s) * u(xt, s, t). With s = t it is the velocity of flow matching, the only loss
    until `start`. Then each batch has three parts:

    - Distillation: `teacher` integrates fresh noise to images with the EMA weights. Two points xt
      and xs of this trajectory give the target (xt - xs) / (t - s), as in Luhman and Luhman 2021,
      "Knowledge Distillation in Iterative Generative Models". The trajectory is a deterministic
      function of noise and label, so each input has a single target, not an average of several.
    - Flow matching on images that the network generated in one step, at times -t: the velocity of
      their distribution, by the same network (Cheng et al. 2025, "TwinFlow").
    - Flow matching on training images.

    The difference between the velocities at t and at -t is the gradient that moves the distribution
    of the images that are generated in one step towards the real one (Yin et al. 2024, "One-step
    Diffusion with Distribution Matching Distillation", eq. 7 and 8). Its weight rises linearly from
    0 at `start` to `matching_weight` at the end.

    See conf/objective/average_velocity.yaml for the arguments.
    """

    teacher: Sampler
    start: Fraction = 0.5
    distillation_fraction: Annotated[float, Field(gt=0, le=1)] = 0.5
    one_step_fraction: Fraction = 0.6
    generated_fraction: Fraction = 0.25
    matching_weight: Annotated[float, Field(ge=0)] = 1.0
    guidance_scale: Annotated[float, Field(ge=1)] = 1.0
    reuse: PositiveInt = 4

    def __post_init__(self) -> None:
        self.trajectories: tuple[Tensor, Tensor] | None = None  # with their labels
        self.uses = 0  # batches with these trajectories
        self.generated: tuple[Tensor, Tensor] | None = None  # images of the last step, and labels

    def check(self, denoiser: Denoiser, label_dropout: float) -> None:
        key = "objective.guidance_scale"
        check_guidance(self.guidance_scale, denoiser.num_classes, label_dropout, key)
        is_velocity = isinstance(denoiser.prediction, VelocityPrediction)
        is_flow = is_velocity and isinstance(denoiser.schedule, LinearSchedule)
        if not is_flow or denoiser.weighting is not None or not denoiser.accepts_interval:
            raise ValueError(
                "objective=average_velocity: requires model=unet model.interval_embedding=true "
                "prediction=velocity schedule=linear weighting=null."
            )
        real = 1 - self.distillation_fraction - self.generated_fraction
        if self.matching_weight and (real < 1e-6 or self.generated_fraction == 0):
            raise ValueError(
                f"objective.generated_fraction={self.generated_fraction}: expected a value above 0 "
                f"whose sum with distillation_fraction={self.distillation_fraction} is below 1, or "
                f"objective.matching_weight=0 (no distribution matching)."
            )

    def loss(self, denoiser: Denoiser, batch: NoisyBatch, ema: Denoiser, progress: float) -> Tensor:
        if progress < self.start:
            return denoiser.loss(*batch)
        n = len(batch.x0)
        # The times of a batch are sorted, and its parts have to cover all of them.
        batch = batch._replace(t=batch.t[torch.randperm(n, device=batch.t.device)])
        size = max(1, round(self.distillation_fraction * n))
        distilled, rest = batch.split(size)
        parts = [self.distillation(ema, distilled)]
        if self.generated is not None and self.matching_weight:
            images, labels = (each.to(rest.x0.device) for each in self.generated)
            count = min(len(images), round(self.generated_fraction * n))
            generated, rest = rest.split(count)
            generated = generated._replace(x0=images[:count], label=labels[:count])
            flow = flow_matching(denoiser, generated)
            parts.append(flow._replace(t=-flow.t, s=-flow.s))
        parts.append(flow_matching(denoiser, rest))
        xt, t, s, label, target = (torch.cat(each) for each in zip(*parts, strict=True))
        model_output = denoiser.model_output(xt, t, label, s)

        rows = slice(round(self.one_step_fraction * size))  # with (s, t) = (0, 1)
        if self.matching_weight and rows.stop:
            images = (xt[rows] - model_output[rows]).detach()
            self.generated = images, label[rows].clone()
            gradient = self.matching_gradient(denoiser, ema, *self.generated, distilled.t[rows])
            weight = self.matching_weight * (progress - self.start) / max(1 - self.start, 1e-6)
            # This adds -weight * gradient to the derivative of the squared error by the output.
            target[rows] += weight / 2 * gradient
        return (model_output - target).square().mean()

    def distillation(self, ema: Denoiser, batch: NoisyBatch) -> RegressionBatch:
        """Two times of each of as many teacher trajectories as there are images in the batch."""
        if self.trajectories is None or self.uses == self.reuse:
            eps = torch.randn_like(batch.eps)
            self.trajectories = self.generate(ema, eps, batch.label), batch.label.clone()
            self.uses = 0
        self.uses += 1
        trajectories, label = (each.to(batch.x0.device) for each in self.trajectories)
        order = torch.randperm(len(label), device=label.device)
        return self.sample_points(trajectories[order], label[order])

    @torch.no_grad()
    def matching_gradient(
        self, denoiser: Denoiser, ema: Denoiser, images: Tensor, label: Tensor, t: Tensor
    ) -> Tensor:
        """Gradient (B, C, H, W) that moves generated images towards the real distribution.

        Yin et al. 2024, eq. 7 and 8, without the factor alpha.
        """
        xt = denoiser.schedule.add_noise(images, torch.randn_like(images), t)
        with eval_mode(denoiser, ema):
            real_x0 = CFGDenoiser(ema, self.guidance_scale)(xt, t, label)
            velocity = denoiser.model_output(xt, -t, label)
        generated_x0 = denoiser.prediction.to_x0(denoiser.schedule, velocity, xt, t)
        error = (images - real_x0).abs().mean(dim=(1, 2, 3), keepdim=True)
        return (generated_x0 - real_x0) / error.clamp(min=0.02)

    def state_dict(self) -> dict[str, Any]:
        return {key: getattr(self, key) for key in ("trajectories", "uses", "generated")}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        vars(self).update({key: state[key] for key in self.state_dict()})

    @torch.no_grad()
    def generate(self, ema: Denoiser, eps: Tensor, label: Tensor) -> Tensor:
        """Trajectories (B, steps + 1, C, H, W) from noise (B, C, H, W)."""
        denoiser = CFGDenoiser(ema, self.guidance_scale)
        with eval_mode(ema):
            output = self.teacher.sample(denoiser, eps, label, return_trajectory=True)
        # A copy, because inference tensors cannot be part of a graph.
        return torch.stack(output.trajectory, dim=1).clone()

    def sample_points(self, trajectories: Tensor, label: Tensor) -> RegressionBatch:
        """Two random times of each trajectory (B, steps + 1, C, H, W), or its first and last."""
        device, n = trajectories.device, len(trajectories)
        times = torch.tensor(self.teacher.times()).to(trajectories, non_blocking=True)
        two_indices = torch.rand(n, len(times), device=device).argsort(dim=1)[:, :2]
        i, j = two_indices.sort(dim=1).values.unbind(1)
        k = round(self.one_step_fraction * n)
        i[:k], j[:k] = 0, len(times) - 1
        rows = torch.arange(n, device=device)
        xt, xs = trajectories[rows, i], trajectories[rows, j]
        target = (xt - xs) / (times[i] - times[j])[:, None, None, None]
        return RegressionBatch(xt, times[i], times[j], label, target)


@contextmanager
def eval_mode(*modules: nn.Module) -> Iterator[None]:
    """Turns dropout off within the context."""
    training = [module.training for module in modules]
    for module in modules:
        module.eval()
    yield
    for module, mode in zip(modules, training, strict=True):
        module.train(mode)


def flow_matching(denoiser: Denoiser, batch: NoisyBatch) -> RegressionBatch:
    """The regression of the velocity at the times of the batch."""
    x0, eps, t, label = batch
    xt = denoiser.schedule.add_noise(x0, eps, t)
    target = denoiser.prediction.target(denoiser.schedule, x0, eps, t)
    return RegressionBatch(xt, t, t, label, target)
