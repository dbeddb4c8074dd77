"""Average velocities by self-distillation and distribution matching, for sampling in one step."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from unet_diffusion.diffusion.denoiser import CFGDenoiser, Denoiser
from unet_diffusion.objectives.objective import NoisyBatch, Objective, TrainingLoss
from unet_diffusion.samplers import Sampler


class VelocityTargets(NamedTuple):
    """Points of paths, and the average velocity u(xt, s, t) that the network learns there."""

    xt: Tensor  # (B, C, H, W)
    t: Tensor  # (B,)
    s: Tensor  # (B,), equal to t for the velocity of flow matching
    label: Tensor  # (B,)
    u: Tensor  # (B, C, H, W)


@dataclass(eq=False)
class AverageVelocityObjective(Objective):
    """Flow matching, then distillation of the network's own trajectories to average velocities.

    The network learns u(xt, s, t), the average velocity of the path from time t to s < t (Geng et
    al. 2025, "Mean Flows for One-step Generative Modeling", eq. 3), so that
    xs = xt - (t - s) * u(xt, s, t). With s = t it is the velocity of flow matching, the only loss
    until `start`. Then the loss is the sum of four terms, the first three weighted by their
    fractions of the batch:

    - distillation: the squared error at two points of a trajectory that `teacher` integrates
      from fresh noise with the EMA weights (Luhman and Luhman 2021, "Knowledge Distillation in
      Iterative Generative Models"). A trajectory is a deterministic function of noise and label,
      so each input has a single target, not an average of several.
    - generated images: flow matching on images that the network generated in one step, at times
      -t: the velocity of their distribution, by the same network (Cheng et al. 2025, "TwinFlow").
    - training images: flow matching at times t.
    - distribution matching: moves the images that are generated in one step along the difference
      of the velocities at t and at -t, the gradient of the divergence between the two
      distributions (Yin et al. 2024, "One-step Diffusion with Distribution Matching Distillation",
      eq. 7 and 8). Its weight rises linearly from 0 at `start` to `matching_weight` at the end.

    See conf/objective/average_velocity.yaml for the arguments.
    """

    teacher: Sampler
    start: float = 0.5
    distillation_fraction: float = 0.5
    one_step_fraction: float = 0.6
    generated_fraction: float = 0.25
    matching_weight: float = 1.0
    guidance_scale: float = 1.0
    reuse: int = 4

    needs_average_velocity = True

    def __post_init__(self) -> None:
        for name in ("start", "one_step_fraction", "generated_fraction"):
            if not 0 <= (value := getattr(self, name)) <= 1:
                raise ValueError(f"{name}={value}: expected a value in [0, 1].")
        for name, minimum in (("matching_weight", 0), ("guidance_scale", 1), ("reuse", 1)):
            if not (value := getattr(self, name)) >= minimum:
                raise ValueError(f"{name}={value}: expected at least {minimum}.")
        if not 0 < (fraction := self.distillation_fraction) <= 1:
            raise ValueError(f"distillation_fraction={fraction}: expected a value in (0, 1].")
        training_fraction = 1 - self.distillation_fraction - self.generated_fraction
        if self.matching_weight and (training_fraction < 1e-6 or not self.generated_fraction):
            raise ValueError(
                f"generated_fraction={self.generated_fraction}: expected a value above 0 whose sum "
                f"with distillation_fraction={self.distillation_fraction} is below 1, or "
                f"matching_weight=0 (no distribution matching)."
            )
        self.trajectories: tuple[Tensor, Tensor] | None = None  # with their labels
        self.uses = 0  # batches with these trajectories
        self.generated: tuple[Tensor, Tensor] | None = None  # images of the last step, and labels

    def loss(
        self, denoiser: Denoiser, batch: NoisyBatch, ema: Denoiser, progress: float
    ) -> TrainingLoss:
        n = len(batch.x0)
        if progress < self.start:
            return TrainingLoss(denoiser.loss(*batch), n)
        # The times of a batch are sorted, and each term has to cover all of them.
        batch = batch._replace(t=batch.t[torch.randperm(n, device=batch.t.device)])
        size = max(1, round(self.distillation_fraction * n))
        terms = [self.distillation_targets(ema, batch.label[:size], batch.x0.shape[1:])]
        first = size  # of the training images
        if self.generated is not None and self.matching_weight:
            images, label = (each.to(batch.x0.device) for each in self.generated)
            first += min(len(images), round(self.generated_fraction * n))
            count = first - size
            rest = batch.eps[size:first], batch.t[size:first]
            generated = NoisyBatch(images[:count], *rest, label[:count])
            terms.append(generated_image_targets(denoiser, generated))
        terms.append(flow_matching_targets(denoiser, NoisyBatch(*(each[first:] for each in batch))))

        xt, t, s, label, target = (torch.cat(each) for each in zip(*terms, strict=True))
        u = denoiser.model_output(xt, t, label, s)  # of all terms in one network evaluation
        loss = F.mse_loss(u, target)
        rows = slice(round(self.one_step_fraction * size))  # with (s, t) = (0, 1)
        if self.matching_weight and rows.stop:
            images, label = xt[rows] - u[rows], label[rows]
            self.generated = images.detach(), label.clone()
            gradient = self.matching_gradient(denoiser, ema, *self.generated, batch.t[rows])
            weight = self.matching_weight * (progress - self.start) / max(1 - self.start, 1e-6)
            fraction = rows.stop / len(u)
            loss = loss + fraction * weight / 2 * distribution_matching(images, gradient)
        return TrainingLoss(loss, n - first)

    def distillation_targets(
        self, ema: Denoiser, label: Tensor, image_shape: torch.Size
    ) -> VelocityTargets:
        """Two times of each of as many teacher trajectories as there are labels (B,)."""
        if self.trajectories is None or self.uses == self.reuse:
            eps = torch.randn(len(label), *image_shape, device=label.device)
            self.trajectories = self.generate(ema, eps, label), label.clone()
            self.uses = 0
        self.uses += 1
        trajectories, label = (each.to(label.device) for each in self.trajectories)
        order = torch.randperm(len(label), device=label.device)
        return self.sample_points(trajectories[order], label[order])

    @torch.no_grad()
    def generate(self, ema: Denoiser, eps: Tensor, label: Tensor) -> Tensor:
        """Trajectories (B, steps + 1, C, H, W) from noise (B, C, H, W)."""
        denoiser = CFGDenoiser(ema, self.guidance_scale)
        with eval_mode(ema):
            output = self.teacher.sample(denoiser, eps, label, return_trajectory=True)
        # A copy, because inference tensors cannot be part of a graph.
        return torch.stack(output.trajectory, dim=1).clone()

    def sample_points(self, trajectories: Tensor, label: Tensor) -> VelocityTargets:
        """Two random times of each trajectory (B, steps + 1, C, H, W), or its first and last.

        The average velocity between two points of a path is (xt - xs) / (t - s).
        """
        device, n = trajectories.device, len(trajectories)
        times = torch.tensor(self.teacher.times()).to(trajectories, non_blocking=True)
        two_indices = torch.rand(n, len(times), device=device).argsort(dim=1)[:, :2]
        i, j = two_indices.sort(dim=1).values.unbind(1)
        k = round(self.one_step_fraction * n)
        i[:k], j[:k] = 0, len(times) - 1
        rows = torch.arange(n, device=device)
        xt, xs = trajectories[rows, i], trajectories[rows, j]
        u = (xt - xs) / (times[i] - times[j])[:, None, None, None]
        return VelocityTargets(xt, times[i], times[j], label, u)

    @torch.no_grad()
    def matching_gradient(
        self, denoiser: Denoiser, ema: Denoiser, images: Tensor, label: Tensor, t: Tensor
    ) -> Tensor:
        """Gradient (B, C, H, W) of the divergence between generated and real images, by the images.

        Yin et al. 2024, eq. 7 and 8, without the factor alpha: the difference of the clean images
        that are predicted for the generated and for the real distribution.
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


def flow_matching_targets(denoiser: Denoiser, batch: NoisyBatch) -> VelocityTargets:
    """The velocity eps - x0 at xt: the average velocity with s = t (Liu et al. 2022, eq. 1)."""
    x0, eps, t, label = batch
    u = denoiser.prediction.target(denoiser.schedule, x0, eps, t)
    return VelocityTargets(denoiser.schedule.add_noise(x0, eps, t), t, t, label, u)


def generated_image_targets(denoiser: Denoiser, batch: NoisyBatch) -> VelocityTargets:
    """The velocity of the distribution of generated images x0, which has the times -t."""
    targets = flow_matching_targets(denoiser, batch)
    return targets._replace(t=-targets.t, s=-targets.s)


def distribution_matching(images: Tensor, gradient: Tensor) -> Tensor:
    """A scalar whose derivative by the generated images (B, C, H, W) is 2 / numel * gradient."""
    return F.mse_loss(images, (images - gradient).detach())


@contextmanager
def eval_mode(*modules: nn.Module) -> Iterator[None]:
    """Turns dropout off within the context."""
    training = [module.training for module in modules]
    for module in modules:
        module.eval()
    yield
    for module, mode in zip(modules, training, strict=True):
        module.train(mode)
