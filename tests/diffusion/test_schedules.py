import math

import pytest
import torch

from unet_diffusion.diffusion import CosineSchedule, DDPMSchedule, LinearSchedule, Schedule

SCHEDULES = [LinearSchedule(), CosineSchedule(), DDPMSchedule(), DDPMSchedule(zero_terminal=True), DDPMSchedule(0.5, 5)]
T = torch.linspace(0, 1, 41, dtype=torch.float64)
INSIDE = T[1:-1]


@pytest.mark.parametrize("schedule", SCHEDULES)
@pytest.mark.parametrize("name", ["alpha", "sigma"])
def test_the_derivatives_are_those_of_autograd(schedule: Schedule, name: str):
    t = INSIDE.clone().requires_grad_()
    (expected,) = torch.autograd.grad(getattr(schedule, name)(t).sum(), t)
    torch.testing.assert_close(getattr(schedule, f"{name}_dot")(INSIDE), expected)


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_the_signal_to_noise_ratio_falls_from_infinity(schedule: Schedule):
    snr = schedule.snr(T)
    assert snr[0] == math.inf
    assert (snr[1:] < snr[:-1]).all()
    torch.testing.assert_close(snr[1:], (schedule.alpha(T) / schedule.sigma(T))[1:] ** 2)


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_the_velocity_points_along_the_path(schedule: Schedule):
    p, q = schedule.velocity_weights(INSIDE)
    # the same direction as (alpha_dot, sigma_dot), not the opposite one: at another pace only
    torch.testing.assert_close(p * schedule.sigma_dot(INSIDE), q * schedule.alpha_dot(INSIDE))
    assert (q * schedule.sigma_dot(INSIDE) + p * schedule.alpha_dot(INSIDE) > 0).all()
    assert all(weight.isfinite().all() for weight in schedule.velocity_weights(T))


@pytest.mark.parametrize("schedule", SCHEDULES[1:])
def test_variance_preserving_means_what_it_says(schedule: Schedule):
    torch.testing.assert_close(schedule.alpha(T) ** 2 + schedule.sigma(T) ** 2, torch.ones_like(T))


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_both_ends(schedule: Schedule):
    assert schedule.alpha(T[:1]).item() == 1
    assert schedule.sigma(T[:1]).item() == 0
    leaves_nothing = isinstance(schedule, (LinearSchedule, CosineSchedule)) or schedule.terminal > 0
    assert (schedule.alpha(T[-1:]).item() == 0) == leaves_nothing
    assert (schedule.sigma(T[-1:]).item() == 1) == leaves_nothing


def test_ddpm_is_the_limit_of_the_papers_thousand_steps():
    # Ho et al. 2020, sec. 4: beta from 1e-4 to 0.02 in 1,000 steps; abar_n is the product of 1 - beta
    abar = torch.cumprod(1 - torch.linspace(1e-4, 0.02, 1000, dtype=torch.float64), dim=0)
    alpha = DDPMSchedule(0.1, 20).alpha(torch.arange(1, 1001, dtype=torch.float64) / 1000)
    torch.testing.assert_close(alpha, abar.sqrt(), rtol=0.06, atol=2e-4)
    assert alpha[-1].item() == pytest.approx(0.0066, abs=1e-4)


def test_a_rescaled_schedule_keeps_its_shape():
    t = torch.tensor([0.25], dtype=torch.float64)
    plain, rescaled = DDPMSchedule().alpha(t), DDPMSchedule(zero_terminal=True).alpha(t)
    last = DDPMSchedule().alpha(torch.ones_like(t))
    torch.testing.assert_close(rescaled, (plain - last) / (1 - last))  # Lin et al. 2023, alg. 1, with alpha(0) = 1


@pytest.mark.parametrize(
    ("typed", "named"),
    [({"beta_min": 0}, "beta_min"), ({"beta_max": 0.01}, "beta_max"), ({"zero_terminal": 1}, "zero_terminal")],
)
def test_impossible_rates_are_refused(typed: dict, named: str):
    with pytest.raises(ValueError, match=f"^{named}="):
        DDPMSchedule(**typed)
