"""Samplers against the closed form for x0 ~ N(0, 0.25) per pixel, where the denoiser is known."""

import itertools
import math

import pytest
import torch

from unet_diffusion.diffusion import CosineSchedule, DDPMSchedule, LinearSchedule, Schedule
from unet_diffusion.samplers import DDIMSampler, DPMSolverSampler, HeunSampler, Sampler
from unet_diffusion.samplers.samplers import dynamic_threshold

STD = 0.5
DDPM_SCHEDULES = [DDPMSchedule(), DDPMSchedule(zero_terminal_snr=True)]
SCHEDULES = [LinearSchedule(), CosineSchedule(), *DDPM_SCHEDULES]
ONE = torch.ones(1, 1, 1, 1, dtype=torch.float64)


class IdealDenoiser:
    """E[x0 | xt] = v * alpha / (v * alpha**2 + sigma**2) * xt with v = STD**2.

    The probability flow scales x in proportion to the standard deviation of xt.
    """

    nfe_per_call = 1

    def __init__(self, schedule: Schedule) -> None:
        self.schedule = schedule
        self.times: list[float] = []

    def __call__(self, xt, t, label=None):
        self.times.append(t[0].item())
        t = t[:, None, None, None]
        alpha, sigma = self.schedule.alpha(t), self.schedule.sigma(t)
        return STD**2 * alpha / (STD**2 * alpha**2 + sigma**2) * xt


def std_of_xt(schedule: Schedule, t: float) -> float:
    time = torch.tensor(t, dtype=torch.float64)
    return math.sqrt(STD**2 * schedule.alpha(time) ** 2 + schedule.sigma(time) ** 2)


def error(sampler: Sampler, schedule: Schedule) -> float:
    """Error of the final standard deviation, starting from that of xt at t = 1."""
    noise_std = float(schedule.sigma(torch.ones((), dtype=torch.float64)))
    start = std_of_xt(schedule, 1) / noise_std  # sample() multiplies by sigma(1)
    return sampler.sample(IdealDenoiser(schedule), start * ONE).images.item() - STD


def test_errors_equal_the_closed_form():
    euler = [error(DDIMSampler(steps), LinearSchedule()) for steps in (8, 16, 32, 64)]
    assert euler == pytest.approx([-0.085, -0.044, -0.023, -0.011], abs=6e-4)
    heun = [error(HeunSampler(steps), LinearSchedule()) for steps in (8, 16, 32, 64)]
    assert heun == pytest.approx([-0.0149, -0.0034, -0.0008, -0.0002], abs=6e-5)


# sigma of DDPM starts like a square root: with a uniform grid every sampler is of first order.
SMOOTH = [
    (schedule, grid)
    for schedule in SCHEDULES
    for grid in ("uniform", "cosine")
    if not (isinstance(schedule, DDPMSchedule) and grid == "uniform")
]


@pytest.mark.parametrize(("schedule", "grid"), SMOOTH)
@pytest.mark.parametrize(
    ("make", "low", "high"),
    [(DDIMSampler, 0.95, 1.05), (HeunSampler, 1.85, 2.2), (DPMSolverSampler, 1.85, 4)],
)
def test_order_of_convergence(make: type, low: float, high: float, schedule: Schedule, grid: str):
    coarse, fine = (error(make(steps, time_grid=grid), schedule) for steps in (64, 256))
    assert low < math.log(abs(coarse / fine)) / math.log(4) < high


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_samplers_of_second_order_converge_to_the_exact_solution(schedule: Schedule):
    for sampler in (HeunSampler(300), DPMSolverSampler(600)):
        assert error(sampler, schedule) == pytest.approx(0, abs=1.2e-3), sampler


@pytest.mark.parametrize("schedule", SCHEDULES)
@pytest.mark.parametrize("eta", [0.5, 1.0])
def test_stochastic_sampling_has_the_variance_of_the_data(schedule: Schedule, eta: float):
    torch.manual_seed(0)
    eps = torch.randn(10_000, 1, 1, 1, dtype=torch.float64)
    sampler = DDIMSampler(steps=400, eta=eta, time_grid="cosine")
    images = sampler.sample(IdealDenoiser(schedule), eps).images
    assert images.std().item() == pytest.approx(STD, rel=0.02)
    # fresh noise: the images hardly depend on the initial noise
    correlation = torch.corrcoef(torch.stack([eps.flatten(), images.flatten()]))[0, 1].item()
    assert correlation < (0.05 if eta == 1 else 0.6)


@pytest.mark.parametrize("steps", [1, 7])
def test_nfe_is_the_number_of_network_evaluations(steps: int):
    heun = (HeunSampler(steps), 2 * steps - 1)
    others = [make(steps) for make in (DDIMSampler, DPMSolverSampler)]
    for sampler, nfe in (heun, *((each, steps) for each in others)):
        denoiser = IdealDenoiser(LinearSchedule())
        output = sampler.sample(denoiser, ONE)
        assert output.nfe == nfe == len(denoiser.times)
        assert output.trajectory == []
        denoiser.nfe_per_call = 2  # as with guidance
        again = sampler.sample(denoiser, ONE)
        assert again.nfe == 2 * nfe
        assert torch.equal(again.images, output.images)  # a sampler remembers nothing


def test_trajectory_has_xt_at_every_time():
    denoiser = IdealDenoiser(LinearSchedule())
    output = DDIMSampler(5).sample(denoiser, ONE, return_trajectory=True)
    assert len(output.trajectory) == 6
    assert torch.equal(output.trajectory[0], ONE)
    assert torch.equal(output.trajectory[-1], output.images)
    # sampling that starts from the intermediate xt ends at the same image
    t = DDIMSampler(5).times()[2]
    rest = DDIMSampler(3).sample(denoiser, output.trajectory[2], start=t)
    torch.testing.assert_close(rest.images, output.images)


@pytest.mark.parametrize("start", [0.3, 0.6])
def test_sampling_can_start_at_any_time(start: float):
    denoiser = IdealDenoiser(LinearSchedule())
    xt = std_of_xt(LinearSchedule(), start) * ONE
    images = HeunSampler(200).sample(denoiser, xt, start=start).images
    assert images.item() == pytest.approx(STD, abs=1e-4)
    assert max(denoiser.times) == start


@pytest.mark.parametrize(("grid", "middle"), [("uniform", 0.5), ("cosine", 1 - math.sqrt(0.5))])
def test_time_grids_decrease_from_1_to_0(grid: str, middle: float):
    times = DDIMSampler(8, time_grid=grid).times()
    assert (times[0], times[-1], len(times)) == (1, 0, 9)
    assert times[4] == pytest.approx(middle)
    assert all(t > s for t, s in itertools.pairwise(times))


def test_clip_limits_x0_hat():
    class Constant(IdealDenoiser):
        def __call__(self, xt, t, label=None):
            return torch.tensor([-3.0, -0.5, 0.5, 1.5]).view(1, 1, 2, 2)

    limit = 1.5 + 0.985 * 1.5  # 99.5th percentile of 0.5, 0.5, 1.5, 3, between the largest two
    expected = {
        "none": [-3, -0.5, 0.5, 1.5],
        "static": [-1, -0.5, 0.5, 1],
        "dynamic": [-1, -0.5 / limit, 0.5 / limit, 1.5 / limit],
    }
    for clip, values in expected.items():
        sampler = DDIMSampler(3, clip=clip)
        images = sampler.sample(Constant(LinearSchedule()), torch.zeros(1, 1, 2, 2)).images
        assert images.flatten().tolist() == pytest.approx(values, rel=1e-4)
    inside = torch.rand(2, 1, 4, 4) * 2 - 1
    assert torch.equal(dynamic_threshold(inside), inside)


def test_sampling_starts_from_noise_with_standard_deviation_sigma():
    schedule = DDPMSchedule(beta_max=2)
    sigma = schedule.sigma(torch.ones((), dtype=torch.float64)).item()
    assert 0.5 < sigma < 0.9
    output = DDIMSampler(3).sample(IdealDenoiser(schedule), ONE, return_trajectory=True)
    assert output.trajectory[0].item() == pytest.approx(sigma)


def test_invalid_arguments_raise():
    for make in (DDIMSampler, HeunSampler, DPMSolverSampler):
        for steps in (0, 10_001):
            with pytest.raises(ValueError, match=r"^steps="):
                make(steps)
    for eta in (-0.1, float("nan"), 1.1):
        with pytest.raises(ValueError, match=r"^eta="):
            DDIMSampler(eta=eta)
