import pytest
import torch

from unet_diffusion.samplers.one_shot import OneShot


def test_it_asks_once_with_pure_noise_at_level_one():
    asked = []

    def denoiser(xt, t, label):
        asked.append((xt, t, label))
        return xt / 4

    eps, label = torch.randn(3, 1, 4, 4), torch.tensor([0, 1, 2])
    images = OneShot(noise_scale=0.5).sample(denoiser, eps, label)
    ((xt, t, seen),) = asked
    assert torch.equal(xt, eps / 2)
    assert torch.equal(t, torch.ones(3))
    assert seen is label
    assert torch.equal(images, eps / 8)


def test_the_ideal_denoiser_of_pure_noise_draws_the_mean():
    # for x0 ~ N(0.2, 0.25) a pixel, E[x0 | xt] = 0.2 + 0.25 a / (0.25 a^2 + s^2) (xt - 0.2 a); at t = 1, a = 0: the mean
    def ideal(xt, t, label):
        a, s = (1 - t)[:, None, None, None], t[:, None, None, None]
        return 0.2 + 0.25 * a / (0.25 * a**2 + s**2) * (xt - 0.2 * a)

    assert torch.equal(OneShot().sample(ideal, torch.randn(5, 1, 2, 2)), torch.full((5, 1, 2, 2), 0.2))


@pytest.mark.parametrize("scale", [-1, "abc", float("inf")])
def test_an_impossible_scale_is_refused(scale: object):
    with pytest.raises(ValueError, match=r"^noise_scale="):
        OneShot(scale)
