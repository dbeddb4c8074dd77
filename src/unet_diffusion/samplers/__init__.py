"""Samplers: from noise to images with a denoiser."""

from unet_diffusion.samplers.samplers import AverageVelocitySampler as AverageVelocitySampler
from unet_diffusion.samplers.samplers import DDIMSampler as DDIMSampler
from unet_diffusion.samplers.samplers import DPMSolverSampler as DPMSolverSampler
from unet_diffusion.samplers.samplers import HeunSampler as HeunSampler
from unet_diffusion.samplers.samplers import Sampler as Sampler
from unet_diffusion.samplers.samplers import SamplerOutput as SamplerOutput
