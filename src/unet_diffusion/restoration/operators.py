"""Forward operators: how a measured image y = A x + noise comes from an image x (B, C, H, W).

Blurs are periodic: what leaves the image on one side enters it on the other. Their inverses are
then exact and cost two Fourier transforms.
"""

from abc import ABC, abstractmethod

import torch
import torch.nn.functional as F
from torch import Tensor


class Operator(ABC):
    """A linear map A of images."""

    @abstractmethod
    def forward(self, x: Tensor) -> Tensor:
        """A x."""

    @abstractmethod
    def adjoint(self, y: Tensor) -> Tensor:
        """A^T y."""

    @abstractmethod
    def solve(self, residual: Tensor, weight: float) -> Tensor:
        """(A A^T + weight)^-1 residual, with a weight of at least 0."""

    @abstractmethod
    def initial(self, y: Tensor) -> Tensor:
        """x by interpolation, where the algorithms start."""

    def proximal(self, x: Tensor, y: Tensor, weight: float) -> Tensor:
        """The z at which ``|A z - y|^2 + weight * |z - x|^2`` is smallest.

        By the normal equations, z = x + A^T (A A^T + weight)^-1 (y - A x). With weight 0, z is the
        image with A z = y that is nearest to x.
        """
        return x + self.adjoint(self.solve(y - self.forward(x), weight))


class Mask(Operator):
    """Some pixels are missing: 0 in y.

    Args:
        known: bool (H, W) or (B, 1, H, W), False where a pixel is missing.
    """

    def __init__(self, known: Tensor) -> None:
        self.known = known

    def forward(self, x: Tensor) -> Tensor:
        return x * self.known

    def adjoint(self, y: Tensor) -> Tensor:
        return y * self.known

    def solve(self, residual: Tensor, weight: float) -> Tensor:
        return residual / (1 + weight)

    def initial(self, y: Tensor) -> Tensor:
        return fill(y, self.known.expand(len(y), 1, *y.shape[-2:]).to(y))


class Blur(Operator):
    """Convolution with a kernel.

    Args:
        kernel: (h, w), with its centre at (h // 2, w // 2) and the sum 1.
    """

    def __init__(self, kernel: Tensor) -> None:
        self.kernel = kernel

    def forward(self, x: Tensor) -> Tensor:
        return self._multiply(x, self.transfer(x.shape[-2:]))

    def adjoint(self, y: Tensor) -> Tensor:
        return self._multiply(y, self.transfer(y.shape[-2:]).conj())

    def solve(self, residual: Tensor, weight: float) -> Tensor:
        if weight <= 0:
            raise ValueError("a blur cannot be inverted without noise: use noise_std above 0.")
        gain = self.transfer(residual.shape[-2:]).abs().square() + weight
        return self._multiply(residual, 1 / gain)

    def initial(self, y: Tensor) -> Tensor:
        return y

    def transfer(self, size: torch.Size) -> Tensor:
        """The discrete Fourier transform (H, W // 2 + 1) of the kernel at an image size."""
        kernel = self.kernel
        if kernel.shape[0] > size[0] or kernel.shape[1] > size[1]:
            raise ValueError(
                f"kernel of {list(kernel.shape)}: larger than the image, {list(size)}."
            )
        padded = F.pad(kernel, (0, size[1] - kernel.shape[1], 0, size[0] - kernel.shape[0]))
        shifts = (-(kernel.shape[0] // 2), -(kernel.shape[1] // 2))
        spectrum: Tensor = torch.fft.rfft2(padded.roll(shifts, dims=(0, 1)))
        return spectrum

    def _multiply(self, x: Tensor, spectrum: Tensor) -> Tensor:
        product: Tensor = torch.fft.irfft2(torch.fft.rfft2(x) * spectrum, s=x.shape[-2:])
        return product


class Downsample(Operator):
    """Convolution with a kernel, then every `factor`-th pixel of every `factor`-th row.

    Args:
        factor: at least 1; it divides height and width of x.
        kernel: as in `Blur`; None: bicubic.
    """

    def __init__(self, factor: int, kernel: Tensor | None = None) -> None:
        if factor < 1:
            raise ValueError(f"factor={factor}: expected at least 1.")
        self.factor = factor
        self.blur = Blur(bicubic_kernel(factor) if kernel is None else kernel)

    def forward(self, x: Tensor) -> Tensor:
        return self.blur.forward(x)[..., :: self.factor, :: self.factor]

    def adjoint(self, y: Tensor) -> Tensor:
        height, width = y.shape[-2:]
        x = y.new_zeros(*y.shape[:-2], height * self.factor, width * self.factor)
        x[..., :: self.factor, :: self.factor] = y
        return self.blur.adjoint(x)

    def solve(self, residual: Tensor, weight: float) -> Tensor:
        # A A^T is periodic as well. Its spectrum is that of the kernel, folded by the sampling:
        # Zhao et al. 2016, "Fast Single Image Super-Resolution", eq. 15.
        height, width = residual.shape[-2:]
        impulse = residual.new_zeros(height * self.factor, width * self.factor)
        impulse[0, 0] = 1
        response = self.forward(self.blur.adjoint(impulse))
        spectrum = torch.fft.rfft2(response).real + weight
        solved: Tensor = torch.fft.irfft2(torch.fft.rfft2(residual) / spectrum, s=(height, width))
        return solved

    def initial(self, y: Tensor) -> Tensor:
        return F.interpolate(y, scale_factor=self.factor, mode="bicubic")


def gaussian_kernel(std: float) -> Tensor:
    """A Gaussian blur (n, n) with a standard deviation in pixels, above 0."""
    offsets = torch.arange(-int(4 * std + 1), int(4 * std + 1) + 1)
    weights = torch.exp(-(offsets**2) / (2 * std**2))
    kernel = weights[:, None] * weights
    return kernel / kernel.sum()


def bicubic_kernel(factor: int) -> Tensor:
    """The kernel (n, n) of bicubic scaling to 1 / factor, with antialiasing.

    Keys 1981, "Cubic Convolution Interpolation for Digital Image Processing", with a = -1/2.
    """
    radius = int(2 * factor + (factor - 1) / 2)
    # Pixel i of y is at the centre of `factor` pixels of x. A convolution reverses the kernel.
    x = ((torch.arange(-radius, radius + 1) + (factor - 1) / 2) / factor).abs()
    near = 1.5 * x**3 - 2.5 * x**2 + 1
    far = -0.5 * x**3 + 2.5 * x**2 - 4 * x + 2
    weights = torch.where(x < 1, near, torch.where(x < 2, far, 0.0))
    kernel = weights[:, None] * weights
    return kernel / kernel.sum()


def fill(y: Tensor, known: Tensor) -> Tensor:
    """Fills the missing pixels of y (B, C, H, W) smoothly; `known` (B, 1, H, W) is 0 there, else 1.

    Push and pull: means over ever larger squares, until they have a known pixel (Gortler et al.
    1996, "The Lumigraph", sec. 3.4).
    """
    if bool(known.all()) or max(y.shape[-2:]) == 1:
        return y
    weight = F.avg_pool2d(known, 2, ceil_mode=True)
    mean = F.avg_pool2d(y * known, 2, ceil_mode=True) / weight.clamp(min=1e-6)
    coarse = fill(mean, (weight > 0).to(y))
    smooth = F.interpolate(coarse, size=y.shape[-2:], mode="bilinear")
    return torch.where(known > 0, y, smooth)
