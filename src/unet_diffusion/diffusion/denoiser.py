"""The denoiser: network + schedule + prediction, with or without classifier-free guidance."""

from collections.abc import Callable

import torch
from torch import Tensor, nn

from unet_diffusion.diffusion.predictions import Prediction
from unet_diffusion.diffusion.schedules import Schedule
from unet_diffusion.models.layers import Network

NULL_LABEL = -1
"""The label of an image without a class; networks with classes have a null class for it."""


class Denoiser(nn.Module):
    """Predicts the clean image from a noisy image and its time.

    Args:
        net: called as `net(xt, t, label)` with xt (B, C, H, W), t (B,) and label (B,) or None;
            label -1 is the null class. For average velocities, `net(xt, t, label, t - s)`.
        schedule: noise schedule.
        prediction: what the network outputs; x0 must be defined for all t of the schedule.
    """

    nfe_per_call = 1  # network evaluations per image
    __call__: Callable[..., Tensor]  # nn.Module's returns Any

    def __init__(self, net: Network, schedule: Schedule, prediction: Prediction) -> None:
        super().__init__()
        one = torch.ones(1, dtype=torch.float64)
        if not prediction.x0_error_scale(schedule, one).isfinite().item():
            raise ValueError(
                "x0 is undefined at t = 1 for a prediction of the noise and a schedule that "
                "reaches alpha = 0."
            )
        self.net = net
        self.schedule = schedule
        self.prediction = prediction

    def forward(self, xt: Tensor, t: Tensor, label: Tensor | None = None) -> Tensor:
        """Predicts x0_hat (B, C, H, W), not clipped to [-1, 1]."""
        return self.prediction.to_x0(self.schedule, self.model_output(xt, t, label), xt, t)

    def average_velocity(
        self, xt: Tensor, t: Tensor, s: Tensor, label: Tensor | None = None
    ) -> Tensor:
        """Average velocity u (B, C, H, W) of the path from `t` to times s <= t (B,).

        Geng et al. 2025, "Mean Flows for One-step Generative Modeling", eq. 3, so that
        xs = xt - (t - s) * u. With s = t it is the velocity at `t`. Requires a network with an
        interval embedding, velocity prediction and the linear schedule.
        """
        if not self.net.accepts_interval:
            raise ValueError("an average velocity requires a network with an interval embedding.")
        return self.model_output(xt, t, label, s)

    def per_image_loss(
        self, x0: Tensor, eps: Tensor, t: Tensor, label: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """Loss of each image at xt = add_noise(x0, eps, t).

        Returns:
            The mean squared error of the model output (B,), and x0_hat (B, C, H, W).
        """
        xt = self.schedule.add_noise(x0, eps, t)
        model_output = self.model_output(xt, t, label)
        target = self.prediction.target(self.schedule, x0, eps, t)
        loss = (model_output - target).square().mean(dim=(1, 2, 3))
        return loss, self.prediction.to_x0(self.schedule, model_output, xt, t)

    def loss(self, x0: Tensor, eps: Tensor, t: Tensor, label: Tensor | None = None) -> Tensor:
        """The mean squared error over the batch, a scalar."""
        return self.per_image_loss(x0, eps, t, label)[0].mean()

    def model_output(
        self, xt: Tensor, t: Tensor, label: Tensor | None = None, s: Tensor | None = None
    ) -> Tensor:
        """Output of the network (B, C, H, W) in the precision and memory layout of `xt`."""
        arguments = (xt, t, label) if s is None else (xt, t, label, t - s)
        model_output: Tensor = self.net(*arguments).to(xt.dtype).contiguous()
        return model_output


class CFGDenoiser:
    """Classifier-free guidance: x0_null + guidance_scale * (x0_label - x0_null).

    Ho and Salimans 2022, "Classifier-Free Diffusion Guidance", eq. 6 with w = guidance_scale - 1.
    Costs two network evaluations per call, or one for a scale of 1.

    Args:
        denoiser: trained with label dropout, which trains the null class.
        guidance_scale: at least 1 (no guidance); more gives clearer classes and less variety.
    """

    def __init__(self, denoiser: Denoiser, guidance_scale: float) -> None:
        if not guidance_scale >= 1:
            raise ValueError(f"guidance_scale={guidance_scale}: expected at least 1 (no guidance).")
        self.denoiser = denoiser
        self.guidance_scale = guidance_scale
        self.schedule = denoiser.schedule
        self.nfe_per_call = 1 if guidance_scale == 1 else 2

    def __call__(self, xt: Tensor, t: Tensor, label: Tensor | None = None) -> Tensor:
        """Predicts x0_hat (B, C, H, W); images with the null label are not guided."""
        return self._guided(self.denoiser, (xt, t), label)

    def average_velocity(
        self, xt: Tensor, t: Tensor, s: Tensor, label: Tensor | None = None
    ) -> Tensor:
        """Average velocity (B, C, H, W) of the guided path, see `Denoiser.average_velocity`."""
        return self._guided(self.denoiser.average_velocity, (xt, t, s), label)

    def _guided(
        self, predict: Callable[..., Tensor], inputs: tuple[Tensor, ...], label: Tensor | None
    ) -> Tensor:
        if self.guidance_scale == 1 or label is None:
            return predict(*inputs, label)
        labels = torch.cat([label, torch.full_like(label, NULL_LABEL)])
        twice = [torch.cat([each, each]) for each in inputs]
        with_label, with_null = predict(*twice, labels).chunk(2)
        return with_label + (self.guidance_scale - 1) * (with_label - with_null)
