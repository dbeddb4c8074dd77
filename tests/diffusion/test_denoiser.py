import pytest
import torch

from unet_diffusion.diffusion.denoiser import Denoiser
from unet_diffusion.diffusion.levels import FixedLevel
from unet_diffusion.diffusion.predictions import X0Prediction
from unet_diffusion.diffusion.schedules import LinearSchedule


def test_the_noise_law_at_known_points():
    x0 = torch.tensor([1.0, -1.0]).view(2, 1, 1, 1)
    eps = torch.tensor([3.0, 0.5]).view(2, 1, 1, 1)
    xt = LinearSchedule().mix(x0, eps, torch.tensor([0.25, 0.5]))
    assert xt.flatten().tolist() == [0.75 * 1 + 0.25 * 3, 0.5 * -1 + 0.5 * 0.5]


def test_clean_at_zero_and_only_noise_at_one():
    x0, eps = torch.randn(2, 5, 1, 4, 4)
    schedule = LinearSchedule()
    assert torch.equal(schedule.mix(x0, eps, torch.zeros(5)), x0)
    assert torch.equal(schedule.mix(x0, eps, torch.ones(5)), eps)


def test_the_noise_laws_variance():
    torch.manual_seed(0)
    x0 = 0.5 * torch.randn(400, 1, 16, 16)  # variance 0.25, independent of the noise
    for percent in (0.1, 0.5, 0.8):
        xt = LinearSchedule().mix(x0, torch.randn_like(x0), torch.full((400,), percent))
        assert xt.var().item() == pytest.approx((1 - percent) ** 2 * 0.25 + percent**2, rel=0.02)


def test_fixed_level_is_the_percent_for_every_image():
    assert torch.equal(FixedLevel(0.3).draw(7), torch.full((7,), 0.3))


@pytest.mark.parametrize("percent", [-0.1, 1.01, 30, float("nan"), "abc", None, True])
def test_a_percent_outside_zero_to_one_is_refused(percent: object):
    with pytest.raises(ValueError, match=r"^percent="):
        FixedLevel(percent)


def test_a_percentage_is_answered_with_the_fraction():
    with pytest.raises(ValueError, match=r"a fraction is meant, try percent=0\.3$"):
        FixedLevel(30)


class Affine(torch.nn.Module):
    def forward(self, xt, t, label):
        return 2 * xt + t[:, None, None, None]


def test_loss_is_the_mean_squared_error_to_the_clean_image():
    denoiser = Denoiser(Affine(), LinearSchedule(), X0Prediction())
    x0, eps = torch.randn(2, 6, 1, 4, 4).double()
    t = torch.linspace(0, 1, 6).double()
    per_image = t.view(6, 1, 1, 1)
    answer = 2 * ((1 - per_image) * x0 + per_image * eps) + per_image
    torch.testing.assert_close(denoiser.loss(x0, eps, t), ((answer - x0) ** 2).mean())
    torch.testing.assert_close(denoiser(x0, t), 2 * x0 + per_image)
