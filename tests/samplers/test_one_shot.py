import pytest
import torch

from unet_diffusion.diffusion import DDPMSchedule, LinearSchedule
from unet_diffusion.samplers import DDIM, OneShot


class Watched:
    """Answers a quarter of what it is shown, and remembers what that was."""

    evaluations = 1
    schedule = LinearSchedule()

    def __init__(self) -> None:
        self.asked: list = []

    def __call__(self, xt, t, label=None):
        self.asked.append((xt, t, label))
        return xt / 4


def test_it_asks_once_with_pure_noise_at_level_one():
    denoiser = Watched()
    eps, label = torch.randn(3, 1, 4, 4), torch.tensor([0, 1, 2])
    images = OneShot(noise_scale=0.5).sample(denoiser, eps, label)
    ((xt, t, seen),) = denoiser.asked
    assert torch.equal(xt, eps / 2)
    assert torch.equal(t, torch.ones(3))
    assert seen is label
    assert torch.equal(images, eps / 8)


def test_the_ideal_denoiser_of_pure_noise_draws_the_mean():
    # for x0 ~ N(0.2, 0.25) a pixel, E[x0 | xt] = 0.2 + 0.25 a / (0.25 a^2 + s^2) (xt - 0.2 a); at t = 1, a = 0: the mean
    class Ideal(Watched):
        def __call__(self, xt, t, label=None):
            a, s = (1 - t)[:, None, None, None], t[:, None, None, None]
            return 0.2 + 0.25 * a / (0.25 * a**2 + s**2) * (xt - 0.2 * a)

    assert torch.equal(OneShot().sample(Ideal(), torch.randn(5, 1, 2, 2)), torch.full((5, 1, 2, 2), 0.2))


def test_other_samplers_start_from_the_schedules_own_strength_of_noise():
    schedule = DDPMSchedule(beta_max=2)
    sigma = schedule.sigma(torch.ones((), dtype=torch.float64)).item()
    assert 0.5 < sigma < 0.9
    assert DDIM(3).first(schedule, torch.ones(1, 1, 1, 1)).item() == pytest.approx(sigma)


@pytest.mark.parametrize("scale", [-1, "abc", float("inf")])
def test_an_impossible_scale_is_refused(scale: object):
    with pytest.raises(ValueError, match=r"^noise_scale="):
        OneShot(scale)
