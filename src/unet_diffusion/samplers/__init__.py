"""From noise to images by asking a denoiser."""

from unet_diffusion.samplers.base import Drawn, Sampler
from unet_diffusion.samplers.ddim import DDIM
from unet_diffusion.samplers.heun import Heun
from unet_diffusion.samplers.multistep import DPMSolverPP
from unet_diffusion.samplers.one_shot import OneShot

__all__ = [
    "DDIM",
    "DPMSolverPP",
    "Drawn",
    "Heun",
    "OneShot",
    "Sampler",
]
