import pytest
import torch

from unet_diffusion.diffusion import (
    CFGDenoiser,
    Denoiser,
    LinearSchedule,
    VelocityPrediction,
    X0Prediction,
)
from unet_diffusion.models import Network

T = torch.tensor([0.0, 0.05, 0.5, 0.9, 1.0], dtype=torch.float64)


class Affine(Network):
    def forward(self, xt, t, label):
        return 2 * xt + t[:, None, None, None]


def test_x0_loss_is_the_mean_squared_error_of_the_clean_image():
    denoiser = Denoiser(Affine(), LinearSchedule(), X0Prediction())
    x0, eps = torch.randn(2, 5, 1, 4, 4, dtype=torch.float64)
    t = T.view(5, 1, 1, 1)
    x0_hat = 2 * ((1 - t) * x0 + t * eps) + t
    torch.testing.assert_close(denoiser.loss(x0, eps, T), ((x0_hat - x0) ** 2).mean())
    torch.testing.assert_close(denoiser(x0, T), 2 * x0 + t)


def test_loss_of_each_image_is_its_mean_squared_error():
    x0, eps = torch.randn(2, 5, 1, 4, 4, dtype=torch.float64)
    denoiser = Denoiser(Affine(), LinearSchedule(), VelocityPrediction())
    losses, x0_hat = denoiser.per_image_loss(x0, eps, T)
    xt = denoiser.schedule.add_noise(x0, eps, T)
    expected = (eps - x0 - 2 * xt - T.view(5, 1, 1, 1)).square().mean(dim=(1, 2, 3))
    torch.testing.assert_close(losses, expected)
    torch.testing.assert_close(denoiser.loss(x0, eps, T), losses.mean())
    torch.testing.assert_close(x0_hat, denoiser(xt, T))


class Labelled(Network):
    num_classes = 3

    def forward(self, xt, t, label):
        return xt + 10 * label[:, None, None, None] + t[:, None, None, None]


DENOISER = Denoiser(Labelled(), LinearSchedule(), X0Prediction())


def test_guidance_extrapolates_from_the_null_class():
    xt, t, label = torch.randn(3, 1, 2, 2), torch.tensor([0.1, 0.5, 0.9]), torch.tensor([0, 2, -1])
    x0_label, x0_null = DENOISER(xt, t, label), DENOISER(xt, t, torch.full_like(label, -1))
    guided = CFGDenoiser(DENOISER, 2.5)(xt, t, label)
    torch.testing.assert_close(guided, x0_null + 2.5 * (x0_label - x0_null))
    torch.testing.assert_close(guided[2], x0_null[2])  # the null label is not guided


def test_guidance_scale_1_is_the_denoiser_and_less_raises():
    xt, t, label = torch.randn(3, 1, 2, 2), torch.rand(3), torch.tensor([0, 2, -1])
    assert torch.equal(CFGDenoiser(DENOISER, 1)(xt, t, label), DENOISER(xt, t, label))
    assert [CFGDenoiser(DENOISER, scale).nfe_per_call for scale in (1, 1.5)] == [1, 2]

    for scale in (0.9, float("nan")):
        with pytest.raises(ValueError, match=r"^guidance_scale=.*: expected at least 1"):
            CFGDenoiser(DENOISER, scale)
