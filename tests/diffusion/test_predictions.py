import pytest
import torch

from unet_diffusion.diffusion import (
    CosineSchedule,
    DDPMSchedule,
    Denoiser,
    EpsilonPrediction,
    LinearSchedule,
    Prediction,
    Schedule,
    VelocityPrediction,
    X0Prediction,
)
from unet_diffusion.models import Network

PURE_NOISE = [LinearSchedule(), CosineSchedule(), DDPMSchedule(zero_terminal_snr=True)]
"""Schedules that reach alpha = 0 at t = 1."""
COMBINATIONS = [
    (prediction, schedule)
    for prediction in (X0Prediction(), VelocityPrediction())
    for schedule in (*PURE_NOISE, DDPMSchedule())
] + [(EpsilonPrediction(), DDPMSchedule())]
T = torch.tensor([0.0, 0.05, 0.5, 0.9, 1.0], dtype=torch.float64)


@pytest.mark.parametrize(("prediction", "schedule"), COMBINATIONS)
def test_to_x0_inverts_target(prediction: Prediction, schedule: Schedule):
    x0, eps = torch.randn(2, 5, 1, 4, 4, dtype=torch.float64)
    xt = schedule.add_noise(x0, eps, T)
    target = prediction.target(schedule, x0, eps, T)
    x0_hat = prediction.to_x0(schedule, target, xt, T)
    torch.testing.assert_close(x0_hat, x0, rtol=1e-6, atol=1e-6)
    # and x0_error_scale is its derivative
    error = prediction.to_x0(schedule, target + 0.1, xt, T) - x0
    scale = prediction.x0_error_scale(schedule, T)[:, None, None, None]
    torch.testing.assert_close(error.abs(), (0.1 * scale).expand_as(x0).abs(), rtol=1e-6, atol=1e-6)


def test_targets_are_the_named_quantities():
    x0, eps = torch.randn(2, 5, 1, 4, 4)
    names = {X0Prediction(): x0, EpsilonPrediction(): eps, VelocityPrediction(): eps - x0}
    for prediction, expected in names.items():
        assert torch.equal(prediction.target(LinearSchedule(), x0, eps, T.float()), expected)


@pytest.mark.parametrize("schedule", PURE_NOISE)
def test_epsilon_prediction_raises_if_the_schedule_reaches_pure_noise(schedule: Schedule):
    with pytest.raises(ValueError, match=r"^x0 is undefined at t = 1 for a prediction of"):
        Denoiser(Network(), schedule, EpsilonPrediction())
