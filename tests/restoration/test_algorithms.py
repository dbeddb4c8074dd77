"""For a Gaussian prior N(0, C), the denoiser and the posterior mean are known in closed form."""

import torch
from torch import Tensor

from unet_diffusion.diffusion import LinearSchedule
from unet_diffusion.restoration import Blur, Downsample, Mask, dpir, gaussian_kernel, pnp_flow

SHAPE = (1, 1, 6, 6)


def covariance() -> Tensor:
    """Of neighbouring pixels that are similar."""
    positions = torch.cartesian_prod(torch.arange(6.0), torch.arange(6.0)).double()
    return 0.5 * torch.exp(-torch.cdist(positions, positions) / 3)


C = covariance()


def denoise(x: Tensor, std: float) -> Tensor:
    """The mean of x0 given x = x0 + std * eps."""
    gain = C @ torch.linalg.inv(C + std**2 * torch.eye(36).double())
    return (x.flatten(1) @ gain).reshape(x.shape)


def posterior_mean(operator: Mask | Blur | Downsample, y: Tensor, noise_std: float) -> Tensor:
    """C A^T (A C A^T + noise_std^2)^-1 y."""
    unit_images = torch.eye(36).double().reshape(36, 1, 6, 6)
    a = operator.forward(unit_images).flatten(1).T  # (measured, 36)
    noise = (noise_std**2 + 1e-9) * torch.eye(len(a)).double()
    mean = C @ a.T @ torch.linalg.inv(a @ C @ a.T + noise) @ y.flatten()
    return mean.reshape(SHAPE)


def measured(operator: Mask | Blur | Downsample, noise_std: float) -> Tensor:
    torch.manual_seed(0)
    x = (torch.linalg.cholesky(C) @ torch.randn(36).double()).reshape(SHAPE)
    y = operator.forward(x)
    return y + operator.forward(torch.ones_like(x)) * noise_std * torch.randn_like(y)


def test_dpir_converges_to_the_posterior_mean():
    known = torch.rand(6, 6, generator=torch.Generator().manual_seed(1)) < 0.5
    box = torch.full((2, 2), 0.25).double()
    for operator in (Mask(known), Blur(gaussian_kernel(0.35).double()), Downsample(2, box)):
        y = measured(operator, noise_std=0.05)
        restored = dpir(denoise, operator, y, noise_std=0.05, steps=500, balance=1.0)
        expected = posterior_mean(operator, y, 0.05)
        assert (restored - expected).abs().max() < 0.02 < expected.std()


def test_dpir_without_noise_reproduces_the_measurement():
    operator = Downsample(2, torch.full((2, 2), 0.25).double())
    y = measured(operator, noise_std=0.0)
    restored = dpir(denoise, operator, y, steps=300)
    torch.testing.assert_close(operator.forward(restored), y)
    assert (restored - posterior_mean(operator, y, 0.0)).abs().max() < 0.05


def test_pnp_flow_keeps_known_pixels_and_has_the_posterior_mean():
    schedule, known = LinearSchedule(), torch.ones(6, 6, dtype=torch.bool)
    known[2:4, 2:4] = False
    operator = Mask(known)
    y = measured(operator, noise_std=0.0)

    def predict_x0(xt: Tensor, t: Tensor) -> Tensor:
        alpha, sigma = float(1 - t[0]), float(t[0])
        gain = alpha * C @ torch.linalg.inv(alpha**2 * C + sigma**2 * torch.eye(36).double())
        return (xt.flatten(1) @ gain).reshape(xt.shape)

    torch.manual_seed(0)
    restored = pnp_flow(predict_x0, schedule, operator, y.expand(500, -1, -1, -1), steps=100)
    torch.testing.assert_close(restored[..., known], y[..., known].expand(500, -1, -1))
    mean = restored.mean(dim=0, keepdim=True)
    assert (mean - posterior_mean(operator, y, 0.0)).abs().max() < 0.05
    assert restored[..., ~known].std(dim=0).min() > 0.05  # different results
