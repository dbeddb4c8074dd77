"""Samplers against the closed form: for data N(0, 0.25) a pixel, the ideal denoiser and its flow are known."""

import itertools
import math
from collections.abc import Callable

import pytest
import torch

from unet_diffusion.diffusion import CosineSchedule, DDPMSchedule, LinearSchedule, Schedule
from unet_diffusion.samplers import DDIM, DPMSolverPP, Heun, OneShot, Sampler
from unet_diffusion.samplers.clipping import dynamic

STD = 0.5
SCHEDULES = [LinearSchedule(), CosineSchedule(), DDPMSchedule(), DDPMSchedule(zero_terminal=True)]
ONE = torch.ones(1, 1, 1, 1, dtype=torch.float64)


class Ideal:
    """E[x0 | xt] = v a / (v a^2 + s^2) xt for x0 ~ N(0, v); its flow scales x as the marginal's standard deviation goes."""

    evaluations = 1

    def __init__(self, schedule: Schedule) -> None:
        self.schedule = schedule
        self.asked: list[float] = []

    def __call__(self, xt, t, label=None):
        self.asked.append(t[0].item())
        a, s = (part(t)[:, None, None, None] for part in (self.schedule.alpha, self.schedule.sigma))
        return STD**2 * a / (STD**2 * a**2 + s**2) * xt


def error(sampler: Sampler, schedule: Schedule) -> float:
    """How far the final standard deviation is from that of the data, where the flow begins with the true prior's."""
    last = torch.ones((), dtype=torch.float64)
    prior = math.sqrt(STD**2 * schedule.alpha(last) ** 2 + schedule.sigma(last) ** 2)
    return sampler.run(Ideal(schedule), prior * ONE).images.item() - STD


def test_the_figures_of_the_first_and_second_order():
    euler = [error(DDIM(steps), LinearSchedule()) for steps in (8, 16, 32, 64)]
    assert euler == pytest.approx([-0.085, -0.044, -0.023, -0.011], abs=6e-4)
    heun = [error(Heun(steps), LinearSchedule()) for steps in (8, 16, 32, 64)]
    assert heun == pytest.approx([-0.0149, -0.0034, -0.0008, -0.0002], abs=6e-5)


# ddpm's sigma begins like a square root: an even grid's last step is a leap in sigma, and every sampler first order there
EVEN_ENOUGH = [
    (schedule, grid)
    for schedule in SCHEDULES
    for grid in ("uniform", "cosine", "quadratic", "late", "early")
    if not isinstance(schedule, DDPMSchedule) or grid in ("cosine", "quadratic")
]


@pytest.mark.parametrize(("schedule", "grid"), EVEN_ENOUGH)
@pytest.mark.parametrize(("make", "least", "most"), [(DDIM, 0.95, 1.05), (Heun, 1.85, 2.2), (DPMSolverPP, 1.85, 4)])
def test_the_order_of_convergence(make: Callable[..., Sampler], least: float, most: float, schedule: Schedule, grid: str):
    coarse, fine = (error(make(steps, grid=grid), schedule) for steps in (64, 256))
    assert least < math.log(abs(coarse / fine)) / math.log(4) < most


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_all_samplers_agree_in_the_limit(schedule: Schedule):
    for sampler in (DDIM(4000), Heun(500), DPMSolverPP(1000), DDIM(4000, grid="quadratic")):
        assert error(sampler, schedule) == pytest.approx(0, abs=6e-4), sampler


def test_ddim_on_the_linear_schedule_is_eulers_method_on_the_velocity():
    x = eps = torch.randn(4, 1, 3, 3, dtype=torch.float64)
    ideal, steps = Ideal(LinearSchedule()), 7
    for i in range(steps):
        t = 1 - i / steps
        velocity = (x - ideal(x, torch.full((4,), t, dtype=torch.float64))) / t
        x = x - velocity / steps
    torch.testing.assert_close(DDIM(steps).sample(ideal, eps), x)


def test_heun_on_the_linear_schedule_is_heuns_method_on_the_velocity():
    x = eps = torch.randn(4, 1, 3, 3, dtype=torch.float64)
    ideal, steps = Ideal(LinearSchedule()), 6

    def velocity(x, t):
        return (x - ideal(x, torch.full((4,), t, dtype=torch.float64))) / t

    for i in range(steps):
        t, s = 1 - i / steps, 1 - (i + 1) / steps
        first = velocity(x, t)
        x = x - (first + velocity(x - first / steps, s)) / 2 / steps if i + 1 < steps else x - first / steps
    torch.testing.assert_close(Heun(steps).sample(ideal, eps), x)


@pytest.mark.parametrize("schedule", SCHEDULES)
@pytest.mark.parametrize("eta", [0.5, 1.0])
def test_ancestral_sampling_has_the_datas_variance(schedule: Schedule, eta: float):
    torch.manual_seed(0)
    eps = torch.randn(40_000, 1, 1, 1, dtype=torch.float64)
    drawn = DDIM(steps=400, eta=eta, grid="cosine").sample(Ideal(schedule), eps)
    assert drawn.std().item() == pytest.approx(STD, rel=0.02)
    # what is fresh: the image that comes out hardly depends on the noise that went in
    correlation = torch.corrcoef(torch.stack([eps.flatten(), drawn.flatten()]))[0, 1].item()
    assert correlation < (0.05 if eta == 1 else 0.6)


def test_one_ancestral_step_has_the_posteriors_mean_and_variance():
    # q(x_s | x_t, x_0) of the process that noises x_s further to x_t: Gaussians, by the rule for their product
    schedule, t, s = CosineSchedule(), 0.8, 0.5
    (a_t, s_t), (a_s, s_s) = ((schedule.alpha(level).item(), schedule.sigma(level).item()) for level in torch.tensor([t, s]))
    ratio = a_t / a_s
    added = s_t**2 - ratio**2 * s_s**2
    variance = 1 / (1 / s_s**2 + ratio**2 / added)
    x0, xt = 0.3, -0.7
    mean = variance * (a_s * x0 / s_s**2 + ratio * xt / added)

    class Known:
        evaluations = 1
        schedule = CosineSchedule()

        def __call__(self, xt, t, label=None):
            return torch.full_like(xt, x0)

    class OneStep(DDIM):
        def levels(self, start=1.0):
            return [t, s]

    torch.manual_seed(0)
    drawn = OneStep(1, eta=1).run(Known(), torch.full((200_000, 1, 1, 1), xt, dtype=torch.float64)).images
    assert drawn.mean().item() == pytest.approx(mean, abs=5e-3)
    assert drawn.var().item() == pytest.approx(variance, rel=0.02)


@pytest.mark.parametrize(
    ("sampler", "nfe"), [(OneShot(), 1), (DDIM(7), 7), (DDIM(7, eta=1), 7), (Heun(7), 13), (DPMSolverPP(7), 7), (Heun(1), 1)]
)
def test_nfe_is_what_was_asked(sampler: Sampler, nfe: int):
    ideal = Ideal(LinearSchedule())
    drawn = sampler.run(ideal, ONE)
    assert drawn.nfe == nfe == len(ideal.asked)
    assert drawn.trajectory == []
    ideal.evaluations = 2  # as a guided one has
    assert sampler.run(ideal, ONE).nfe == 2 * nfe


@pytest.mark.parametrize("sampler", [OneShot(), DDIM(5), Heun(5), DPMSolverPP(5)])
def test_one_object_draws_the_same_again(sampler: Sampler):
    first, second = (sampler.sample(Ideal(LinearSchedule()), 2 * ONE) for _ in range(2))
    assert torch.equal(first, second)


def test_the_trajectory_holds_every_level():
    kept = DDIM(5).run(Ideal(LinearSchedule()), ONE, keep=True)
    assert len(kept.trajectory) == 6
    assert torch.equal(kept.trajectory[0], ONE)
    assert torch.equal(kept.trajectory[-1], kept.images)
    # where it stands after two of five steps, another sampler that begins there goes on to the same image
    levels = DDIM(5).levels()
    rest = DDIM(3).run(Ideal(LinearSchedule()), kept.trajectory[2], start=levels[2])
    torch.testing.assert_close(rest.images, kept.images)


@pytest.mark.parametrize("start", [0.3, 0.6])
def test_drawing_can_begin_at_any_level(start: float):
    schedule, level = LinearSchedule(), torch.tensor(start, dtype=torch.float64)
    spread = math.sqrt(STD**2 * schedule.alpha(level) ** 2 + schedule.sigma(level) ** 2)
    ideal = Ideal(schedule)
    assert Heun(200).run(ideal, spread * ONE, start=start).images.item() == pytest.approx(STD, abs=1e-4)
    assert max(ideal.asked) == start


@pytest.mark.parametrize("grid", ["uniform", "cosine", "quadratic", "late", "early"])
def test_grids_fall_from_one_to_zero(grid: str):
    levels = DDIM(9, grid=grid).levels()
    assert (levels[0], levels[-1]) == (1, 0)
    assert all(t > s for t, s in itertools.pairwise(levels))
    middle = {"uniform": 0, "cosine": -1, "quadratic": -1, "late": -1, "early": 1}[grid]
    assert middle == (levels[4] + levels[5] > 1 + 1e-9) - (levels[4] + levels[5] < 1 - 1e-9)


class Wild:
    evaluations = 1
    schedule = LinearSchedule()

    def __call__(self, xt, t, label=None):
        return torch.tensor([-3.0, -0.5, 0.5, 1.5]).view(1, 1, 2, 2)


def test_clipping():
    eps = torch.zeros(1, 1, 2, 2)
    guesses = {clip: DDIM(3, clipping=clip).sample(Wild(), eps).flatten().tolist() for clip in ("none", "static", "dynamic")}
    assert guesses["none"] == pytest.approx([-3, -0.5, 0.5, 1.5])
    assert guesses["static"] == pytest.approx([-1, -0.5, 0.5, 1])
    limit = 1.5 + 0.985 * 1.5  # the 99.5th percentile of 0.5, 0.5, 1.5, 3, between the two largest
    assert guesses["dynamic"] == pytest.approx([-1, -0.5 / limit, 0.5 / limit, 1.5 / limit], rel=1e-4)
    inside = torch.rand(2, 1, 4, 4) * 2 - 1
    assert torch.equal(dynamic(inside), inside)


@pytest.mark.parametrize(
    ("typed", "named"),
    [({"steps": 0}, "steps"), ({"steps": 2.5}, "steps"), ({"grid": "log"}, "grid"), ({"clipping": "hard"}, "clipping")],
)
@pytest.mark.parametrize("make", [DDIM, Heun, DPMSolverPP])
def test_impossible_arguments_are_refused(make: Callable[..., Sampler], typed: dict, named: str):
    with pytest.raises(ValueError, match=f"^{named}="):
        make(**({"steps": 5} | typed))


@pytest.mark.parametrize("eta", [-0.1, 1.1, "much"])
def test_an_impossible_eta_is_refused(eta: object):
    with pytest.raises(ValueError, match=r"^eta="):
        DDIM(eta=eta)
