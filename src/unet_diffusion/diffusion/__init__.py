"""The mathematics: noise schedules, time distributions, predictions, loss and guidance."""

from unet_diffusion.diffusion.denoiser import Denoiser, DenoiserProtocol
from unet_diffusion.diffusion.guidance import NULL_LABEL, CFGDenoiser
from unet_diffusion.diffusion.noise import seeded_noise, slerp
from unet_diffusion.diffusion.predictions import (
    EpsilonPrediction,
    Prediction,
    VelocityPrediction,
    X0Prediction,
)
from unet_diffusion.diffusion.schedules import (
    CosineSchedule,
    DDPMSchedule,
    LinearSchedule,
    Schedule,
    VariancePreservingSchedule,
)
from unet_diffusion.diffusion.time_distributions import (
    FixedTime,
    LogitNormalTime,
    TimeDistribution,
    UniformTime,
)
from unet_diffusion.diffusion.weightings import LossWeighting, MinSNRWeighting, UniformWeighting

__all__ = [
    "NULL_LABEL",
    "CFGDenoiser",
    "CosineSchedule",
    "DDPMSchedule",
    "Denoiser",
    "DenoiserProtocol",
    "EpsilonPrediction",
    "FixedTime",
    "LinearSchedule",
    "LogitNormalTime",
    "LossWeighting",
    "MinSNRWeighting",
    "Prediction",
    "Schedule",
    "TimeDistribution",
    "UniformTime",
    "UniformWeighting",
    "VariancePreservingSchedule",
    "VelocityPrediction",
    "X0Prediction",
    "seeded_noise",
    "slerp",
]
