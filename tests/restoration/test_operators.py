import pytest
import torch
import torch.nn.functional as F

from unet_diffusion.restoration import (
    Blur,
    Downsample,
    Mask,
    Operator,
    bicubic_kernel,
    gaussian_kernel,
)

torch.manual_seed(0)
ASYMMETRIC = torch.rand(4, 7, dtype=torch.float64)
OPERATORS = {
    "mask": Mask(torch.rand(24, 36) < 0.3),
    "blur": Blur(gaussian_kernel(1.6).double()),
    "asymmetric": Blur(ASYMMETRIC / ASYMMETRIC.sum()),
    "twice": Downsample(2, bicubic_kernel(2).double()),
    "three": Downsample(3, bicubic_kernel(3).double()),
    "box": Downsample(4, torch.full((4, 4), 1 / 16, dtype=torch.float64)),
}


def images(seed: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(2, 3, 24, 36, dtype=torch.float64, generator=generator)


@pytest.fixture(params=OPERATORS)
def operator(request: pytest.FixtureRequest) -> Operator:
    return OPERATORS[request.param]


def test_adjoint_passes_the_dot_product_test(operator: Operator):
    x, y = images(0), operator.forward(images(1))
    torch.testing.assert_close((operator.forward(x) * y).sum(), (x * operator.adjoint(y)).sum())


@pytest.mark.parametrize("weight", [1e-3, 0.5])
def test_proximal_step_solves_its_normal_equations(operator: Operator, weight: float):
    x, y = images(0), operator.forward(images(1)) + 0.1 * operator.forward(images(2))
    z = operator.proximal(x, y, weight)
    left = operator.adjoint(operator.forward(z)) + weight * z
    torch.testing.assert_close(left, operator.adjoint(y) + weight * x)


def test_proximal_step_without_weight_reproduces_the_measurement():
    for name in ("mask", "twice", "three", "box"):
        operator = OPERATORS[name]
        y = operator.forward(images(1))
        torch.testing.assert_close(operator.forward(operator.proximal(images(0), y, 0.0)), y)
    with pytest.raises(ValueError, match="noise_std above 0"):
        OPERATORS["blur"].proximal(images(0), images(1), 0.0)


def test_blur_is_a_convolution_with_the_kernel():
    point = torch.zeros(1, 1, 24, 36, dtype=torch.float64)
    point[..., 10, 20] = 1
    blurred = OPERATORS["asymmetric"].forward(point)
    kernel = ASYMMETRIC / ASYMMETRIC.sum()
    torch.testing.assert_close(blurred[0, 0, 8:12, 17:24], kernel)
    assert blurred.sum().item() == pytest.approx(1)


@pytest.mark.parametrize("factor", [2, 3])
def test_bicubic_kernel_is_that_of_torch(factor: int):
    x = images(0)
    expected = F.interpolate(x, scale_factor=1 / factor, mode="bicubic", antialias=True)
    scaled = Downsample(factor, bicubic_kernel(factor).double()).forward(x)
    inner = (..., slice(3, -3), slice(3, -3))  # the borders are periodic here
    torch.testing.assert_close(scaled[inner], expected[inner], atol=1e-6, rtol=0)


def test_missing_pixels_are_filled_from_the_nearest_known_ones():
    known = torch.zeros(33, 20, dtype=torch.bool)
    known[:, :6] = True
    y = torch.linspace(0, 1, 33)[None, None, :, None].expand(1, 1, 33, 20) * known
    filled = Mask(known).initial(y)
    assert torch.equal(filled[..., :6], y[..., :6])
    assert (filled[..., -1].diff(dim=-1) >= -1e-6).all()  # still grows from top to bottom
    assert filled.min() + 1e-6 > 0
    assert filled[..., 30, 15] > 0.6
