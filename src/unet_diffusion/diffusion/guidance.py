"""Classifier-free guidance."""

import torch
from torch import Tensor

from unet_diffusion.diffusion.denoiser import Denoiser

NULL_LABEL = -1
"""The label of an image without a class; networks with classes have a null class for it."""


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
        if self.guidance_scale == 1 or label is None:
            x0_hat: Tensor = self.denoiser(xt, t, label)
            return x0_hat
        labels = torch.cat([label, torch.full_like(label, NULL_LABEL)])
        x0_label, x0_null = self.denoiser(xt.repeat(2, 1, 1, 1), t.repeat(2), labels).chunk(2)
        guided: Tensor = x0_label + (self.guidance_scale - 1) * (x0_label - x0_null)
        return guided
