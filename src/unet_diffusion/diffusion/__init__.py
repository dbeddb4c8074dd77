"""How images and noise are mixed, and how a network sees through it."""

from unet_diffusion.diffusion.denoiser import Denoiser, DenoiserLike
from unet_diffusion.diffusion.guidance import GuidedDenoiser
from unet_diffusion.diffusion.levels import FixedLevel, Levels, LogitNormalLevels, UniformLevels
from unet_diffusion.diffusion.noise import image_noise, slerp
from unet_diffusion.diffusion.predictions import NoisePrediction, Prediction, VelocityPrediction, X0Prediction
from unet_diffusion.diffusion.schedules import CosineSchedule, DDPMSchedule, LinearSchedule, Schedule, VariancePreserving
from unet_diffusion.diffusion.weightings import MinSNR, Unweighted, Weighting

__all__ = [
    "CosineSchedule",
    "DDPMSchedule",
    "Denoiser",
    "DenoiserLike",
    "FixedLevel",
    "GuidedDenoiser",
    "Levels",
    "LinearSchedule",
    "LogitNormalLevels",
    "MinSNR",
    "NoisePrediction",
    "Prediction",
    "Schedule",
    "UniformLevels",
    "Unweighted",
    "VariancePreserving",
    "VelocityPrediction",
    "Weighting",
    "X0Prediction",
    "image_noise",
    "slerp",
]
