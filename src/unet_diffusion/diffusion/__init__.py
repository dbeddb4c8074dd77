"""The mathematics: noise schedules, time distributions, predictions, loss and guidance."""

from unet_diffusion.diffusion.denoiser import CFGDenoiser as CFGDenoiser
from unet_diffusion.diffusion.denoiser import Denoiser as Denoiser
from unet_diffusion.diffusion.noise import seeded_noise as seeded_noise
from unet_diffusion.diffusion.noise import slerp as slerp
from unet_diffusion.diffusion.predictions import EpsilonPrediction as EpsilonPrediction
from unet_diffusion.diffusion.predictions import Prediction as Prediction
from unet_diffusion.diffusion.predictions import VelocityPrediction as VelocityPrediction
from unet_diffusion.diffusion.predictions import X0Prediction as X0Prediction
from unet_diffusion.diffusion.schedules import CosineSchedule as CosineSchedule
from unet_diffusion.diffusion.schedules import DDPMSchedule as DDPMSchedule
from unet_diffusion.diffusion.schedules import LinearSchedule as LinearSchedule
from unet_diffusion.diffusion.schedules import Schedule as Schedule
from unet_diffusion.diffusion.time_distributions import FixedTime as FixedTime
from unet_diffusion.diffusion.time_distributions import LogitNormalTime as LogitNormalTime
from unet_diffusion.diffusion.time_distributions import TimeDistribution as TimeDistribution
from unet_diffusion.diffusion.time_distributions import UniformTime as UniformTime
