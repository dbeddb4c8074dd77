import pytest
import torch

from unet_diffusion.diffusion import (
    CosineSchedule,
    DDPMSchedule,
    Denoiser,
    LinearSchedule,
    MinSNR,
    NoisePrediction,
    Prediction,
    Schedule,
    Unweighted,
    VelocityPrediction,
    X0Prediction,
)

SCHEDULES = [LinearSchedule(), CosineSchedule(), DDPMSchedule(), DDPMSchedule(zero_terminal=True)]
PREDICTIONS = [X0Prediction(), NoisePrediction(), VelocityPrediction()]
LEVELS = torch.tensor([0.0, 0.05, 0.5, 0.9, 1.0], dtype=torch.float64)


def fit_together(prediction: Prediction, schedule: Schedule) -> bool:
    return not isinstance(prediction, NoisePrediction) or schedule.alpha(torch.ones(1).double()).item() > 0


COMBINATIONS = [(p, s) for p in PREDICTIONS for s in SCHEDULES if fit_together(p, s)]


@pytest.mark.parametrize(("prediction", "schedule"), COMBINATIONS)
def test_a_perfect_answer_gives_the_clean_image_back(prediction: Prediction, schedule: Schedule):
    x0, eps = torch.randn(2, 5, 1, 4, 4, dtype=torch.float64)
    xt = schedule.mix(x0, eps, LEVELS)
    answer = prediction.target(schedule, x0, eps, LEVELS)
    assert answer.isfinite().all()
    found = prediction.x0_hat(schedule, answer, xt, LEVELS)
    # the velocity of pure noise, and of nearly pure noise, says nothing more than itself about the image
    torch.testing.assert_close(found, x0, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize(("prediction", "schedule"), COMBINATIONS)
def test_the_gain_is_how_an_error_grows(prediction: Prediction, schedule: Schedule):
    x0, eps = torch.randn(2, 5, 1, 4, 4, dtype=torch.float64)
    xt = schedule.mix(x0, eps, LEVELS)
    answer = prediction.target(schedule, x0, eps, LEVELS)
    moved = prediction.x0_hat(schedule, answer + 0.1, xt, LEVELS) - prediction.x0_hat(schedule, answer, xt, LEVELS)
    gain = prediction.x0_gain(schedule, LEVELS)[:, None, None, None]
    torch.testing.assert_close(moved.abs(), (0.1 * gain).expand_as(moved).abs(), rtol=1e-6, atol=1e-9)


def test_the_velocity_of_the_linear_schedule_is_the_way_from_image_to_noise():
    x0, eps = torch.randn(2, 5, 1, 4, 4)
    torch.testing.assert_close(VelocityPrediction().target(LinearSchedule(), x0, eps, LEVELS.float()), eps - x0)


@pytest.mark.parametrize("schedule", [schedule for schedule in SCHEDULES if not fit_together(NoisePrediction(), schedule)])
def test_noise_prediction_needs_a_trace_of_the_image(schedule: Schedule):
    with pytest.raises(ValueError, match=r"^prediction=noise needs .* try schedule=ddpm"):
        Denoiser(torch.nn.Identity(), schedule, NoisePrediction())


def test_min_snr_weights_are_the_papers():
    t = torch.linspace(0.05, 0.95, 7, dtype=torch.float64)
    schedule = CosineSchedule()
    snr = schedule.snr(t)
    limited = snr.clamp(max=5)
    expected = {X0Prediction: limited, NoisePrediction: limited / snr, VelocityPrediction: limited / (snr + 1)}
    for prediction, weight in expected.items():
        torch.testing.assert_close(MinSNR(5).weight(schedule, prediction(), t), weight)


@pytest.mark.parametrize(("prediction", "schedule"), COMBINATIONS)
def test_weights_are_finite_at_both_ends(prediction: Prediction, schedule: Schedule):
    weight = MinSNR().weight(schedule, prediction, LEVELS)
    assert (weight.isfinite() & (weight >= 0)).all()


class Constant(torch.nn.Module):
    def forward(self, xt, t, label):
        return torch.full_like(xt, 0.5)


def test_the_loss_is_weighted_image_by_image():
    x0, eps = torch.randn(2, 5, 1, 4, 4, dtype=torch.float64)
    schedule = LinearSchedule()
    plain = Denoiser(Constant(), schedule, VelocityPrediction(), Unweighted()).losses(x0, eps, LEVELS)[0]
    torch.testing.assert_close(plain, ((eps - x0 - 0.5) ** 2).mean(dim=(1, 2, 3)))
    weighted = Denoiser(Constant(), schedule, VelocityPrediction(), MinSNR(2))
    torch.testing.assert_close(
        weighted.losses(x0, eps, LEVELS)[0], plain * MinSNR(2).weight(schedule, VelocityPrediction(), LEVELS)
    )
    torch.testing.assert_close(weighted.loss(x0, eps, LEVELS), weighted.losses(x0, eps, LEVELS)[0].mean())
    guess = weighted.losses(x0, eps, LEVELS)[1]
    torch.testing.assert_close(guess, weighted(schedule.mix(x0, eps, LEVELS), LEVELS))
