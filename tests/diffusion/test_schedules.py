import math

import pytest
import torch

from unet_diffusion.diffusion import CosineSchedule, DDPMSchedule, LinearSchedule, Schedule

DDPM_SCHEDULES = [DDPMSchedule(), DDPMSchedule(zero_terminal_snr=True), DDPMSchedule(0.5, 5)]
SCHEDULES = [LinearSchedule(), CosineSchedule(), *DDPM_SCHEDULES]
T = torch.linspace(0, 1, 41, dtype=torch.float64)
INNER_T = T[1:-1]


def test_add_noise_at_known_points():
    x0 = torch.tensor([1.0, -1.0]).view(2, 1, 1, 1)
    eps = torch.tensor([3.0, 0.5]).view(2, 1, 1, 1)
    xt = LinearSchedule().add_noise(x0, eps, torch.tensor([0.25, 0.5]))
    assert xt.flatten().tolist() == [0.75 * 1 + 0.25 * 3, 0.5 * -1 + 0.5 * 0.5]
    assert torch.equal(LinearSchedule().add_noise(x0, eps, torch.tensor([0.0, 0])), x0)
    assert torch.equal(LinearSchedule().add_noise(x0, eps, torch.tensor([1.0, 1])), eps)


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_images_are_clean_at_0_and_get_noisier(schedule: Schedule):
    alpha, sigma = schedule.alpha(T), schedule.sigma(T)
    assert (alpha[0], sigma[0]) == (1, 0)
    assert (alpha / sigma).diff().lt(0).all()
    if not isinstance(schedule, LinearSchedule):  # the others preserve the variance
        torch.testing.assert_close(alpha**2 + sigma**2, torch.ones_like(T))


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_velocity_has_the_direction_of_the_path(schedule: Schedule):
    p, q = schedule.velocity_coefficients(INNER_T)
    t = INNER_T.clone().requires_grad_()
    (alpha_dot,) = torch.autograd.grad(schedule.alpha(t).sum(), t)
    (sigma_dot,) = torch.autograd.grad(schedule.sigma(t).sum(), t)
    torch.testing.assert_close(p * sigma_dot, q * alpha_dot)  # parallel
    assert (q * sigma_dot + p * alpha_dot > 0).all()  # and not opposite
    assert all(c.isfinite().all() for c in schedule.velocity_coefficients(T))


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_t_1_is_pure_noise_unless_ddpm(schedule: Schedule):
    is_pure_noise = not isinstance(schedule, DDPMSchedule) or schedule.terminal_alpha > 0
    assert (schedule.alpha(T[-1:]).item() == 0) == is_pure_noise
    assert (schedule.sigma(T[-1:]).item() == 1) == is_pure_noise


def test_ddpm_is_the_limit_of_the_papers_1000_steps():
    # Ho et al. 2020, sec. 4: beta from 1e-4 to 0.02 in 1,000 steps, abar_n = prod(1 - beta)
    abar = torch.cumprod(1 - torch.linspace(1e-4, 0.02, 1000, dtype=torch.float64), dim=0)
    alpha = DDPMSchedule(0.1, 20).alpha(torch.arange(1, 1001, dtype=torch.float64) / 1000)
    torch.testing.assert_close(alpha, abar.sqrt(), rtol=0.06, atol=2e-4)
    assert alpha[-1].item() == pytest.approx(0.0066, abs=1e-4)


def test_zero_terminal_snr_rescales_alpha():
    t = torch.tensor([0.25], dtype=torch.float64)
    plain = DDPMSchedule().alpha(t)
    terminal = DDPMSchedule().alpha(torch.ones_like(t))
    # Lin et al. 2023, alg. 1, with alpha(0) = 1
    rescaled = DDPMSchedule(zero_terminal_snr=True).alpha(t)
    torch.testing.assert_close(rescaled, (plain - terminal) / (1 - terminal))


@pytest.mark.parametrize("beta_min", [0.0, math.nan, 30.0])
def test_invalid_beta_raises(beta_min: float):
    with pytest.raises(ValueError, match=r"^beta_min=.*: expected"):
        DDPMSchedule(beta_min)


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_time_of_noise_inverts_the_schedule(schedule: Schedule):
    alpha, sigma = schedule.alpha(INNER_T), schedule.sigma(INNER_T)
    torch.testing.assert_close(schedule.time_of_noise(sigma / alpha), INNER_T, atol=1e-6, rtol=0)
    times = schedule.time_of_noise(sigma, additive=False)
    torch.testing.assert_close(times, INNER_T, atol=1e-5, rtol=0)
    assert schedule.time_of_noise(torch.tensor([0.0, 1e9])).tolist() == pytest.approx(
        [0, 1], abs=1e-3
    )
