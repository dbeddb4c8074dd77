"""How images and noise are mixed, and how a network sees through it."""

from unet_diffusion.diffusion.denoiser import Denoiser
from unet_diffusion.diffusion.levels import FixedLevel, Levels
from unet_diffusion.diffusion.noise import image_noise
from unet_diffusion.diffusion.predictions import Prediction, X0Prediction
from unet_diffusion.diffusion.schedules import LinearSchedule, Schedule

__all__ = [
    "Denoiser",
    "FixedLevel",
    "Levels",
    "LinearSchedule",
    "Prediction",
    "Schedule",
    "X0Prediction",
    "image_noise",
]
