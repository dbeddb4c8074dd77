"""Clipping: what is done to a guess x0_hat (B, C, H, W) that leaves the range of images, [-1, 1]."""

from collections.abc import Callable

from torch import Tensor

_SHARE = 0.995


def none(x0_hat: Tensor) -> Tensor:
    """The guess as it is."""
    return x0_hat


def static(x0_hat: Tensor) -> Tensor:
    """Every pixel brought back to [-1, 1]."""
    return x0_hat.clamp(-1, 1)


def dynamic(x0_hat: Tensor) -> Tensor:
    """Every image clipped to the range that holds 99.5 percent of its pixels, and that scaled to [-1, 1].

    Dynamic thresholding, Saharia et al. 2022, "Photorealistic Text-to-Image Diffusion Models", sec. 2.3: it keeps strong
    guidance from saturating. An image within [-1, 1] stays as it is.
    """
    limit = x0_hat.abs().flatten(1).quantile(_SHARE, dim=1).clamp(min=1)[:, None, None, None]
    return x0_hat.clamp(-limit, limit) / limit


CLIPPINGS: dict[str, Callable[[Tensor], Tensor]] = {"none": none, "static": static, "dynamic": dynamic}
