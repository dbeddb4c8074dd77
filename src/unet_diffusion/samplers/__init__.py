"""From noise to images by asking a denoiser."""

from unet_diffusion.samplers.base import Sampler
from unet_diffusion.samplers.one_shot import OneShot

__all__ = ["OneShot", "Sampler"]
