"""Samplers: from noise to images with a denoiser."""

from unet_diffusion.samplers.base import Sampler, SamplerOutput
from unet_diffusion.samplers.ddim import DDIMSampler
from unet_diffusion.samplers.dpm_solver import DPMSolverSampler
from unet_diffusion.samplers.heun import HeunSampler
from unet_diffusion.samplers.one_step import OneStepSampler

__all__ = [
    "DDIMSampler",
    "DPMSolverSampler",
    "HeunSampler",
    "OneStepSampler",
    "Sampler",
    "SamplerOutput",
]
