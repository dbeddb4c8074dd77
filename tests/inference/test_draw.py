import pytest
import torch

from unet_diffusion.diffusion import Denoiser, LinearSchedule, X0Prediction, image_noise
from unet_diffusion.inference.draw import draw
from unet_diffusion.samplers import DDIM, Heun, OneShot, Sampler


class Labelled(torch.nn.Module):
    """Answers with its label's number, and a tenth of what it sees."""

    def forward(self, xt, t, label):
        return (0 if label is None else label[:, None, None, None].to(xt)) + xt / 10


DENOISER = Denoiser(Labelled(), LinearSchedule(), X0Prediction())
EPS = image_noise(3, range(9), (1, 4, 4))


@pytest.mark.parametrize("sampler", [OneShot(), DDIM(4), DDIM(4, eta=1), Heun(3)])
@pytest.mark.parametrize("start", [False, True])
def test_image_i_is_the_same_whatever_the_batch_size(sampler: Sampler, start: bool):
    x0 = torch.linspace(-1, 1, 9).view(9, 1, 1, 1).expand(9, 1, 4, 4) if start else None
    label = torch.arange(9)
    whole, by_four, seven = (
        draw(DENOISER, sampler, EPS[:n], label[:n], seed=3, x0=None if x0 is None else x0[:n], strength=0.4, batch_size=size)
        for n, size in ((9, 9), (9, 4), (7, 7))
    )
    torch.testing.assert_close(by_four.images, whole.images)
    torch.testing.assert_close(seven.images, whole.images[:7])
    assert whole.nfe == by_four.nfe


def test_the_noise_on_the_way_is_fresh():
    stochastic = DDIM(2, eta=1)
    one, two = (draw(DENOISER, stochastic, EPS, seed=seed).images for seed in (3, 4))
    assert not torch.allclose(one, two)
    # what is added at the step to t = 1/2, where all of it is fresh, is not what drawing began with
    alpha, sigma = 0.5, 0.5
    kept = draw(DENOISER, stochastic, EPS, seed=3, keep=True).trajectory
    added = (kept[1] - alpha * EPS / 10) / sigma
    torch.testing.assert_close(added, image_noise(3, range(9), (1, 4, 4), stream=1), rtol=1e-4, atol=1e-5)
    assert torch.corrcoef(torch.stack([added.flatten(), EPS.flatten()]))[0, 1].abs() < 0.3


def test_the_first_stream_is_the_images_own_noise():
    assert torch.equal(image_noise(3, range(9), (1, 4, 4), stream=0), EPS)
    assert not torch.equal(image_noise(3, range(9), (1, 4, 4), stream=1), EPS)


def test_starting_from_an_image_noises_it_to_the_strength():
    x0 = torch.full((9, 1, 4, 4), 0.5)
    kept = draw(DENOISER, DDIM(2), EPS, x0=x0, strength=0.4, keep=True).trajectory
    torch.testing.assert_close(kept[0], 0.6 * x0 + 0.4 * EPS)
    assert len(kept) == 3


def test_trajectories_of_all_batches_are_joined():
    drawn = draw(DENOISER, DDIM(3), EPS, batch_size=4, keep=True)
    assert [x.shape[0] for x in drawn.trajectory] == [9] * 4
    assert torch.equal(drawn.trajectory[0], EPS)
    assert torch.equal(drawn.trajectory[-1], drawn.images)
