"""Samplers: from noise to images with a denoiser."""

from unet_diffusion.samplers.base import Sampler as Sampler
from unet_diffusion.samplers.base import SamplerOutput as SamplerOutput
from unet_diffusion.samplers.samplers import AncestralSampler as AncestralSampler
from unet_diffusion.samplers.samplers import DDIMSampler as DDIMSampler
from unet_diffusion.samplers.samplers import DPMSolverSampler as DPMSolverSampler
from unet_diffusion.samplers.samplers import HeunSampler as HeunSampler
from unet_diffusion.samplers.samplers import OneStepSampler as OneStepSampler
