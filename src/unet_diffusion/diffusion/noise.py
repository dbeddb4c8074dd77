"""Noise that depends on a seed and an image's number alone: not on the batch size, the device or the training stream."""

from collections.abc import Iterable, Sequence

import numpy as np
import torch
from torch import Tensor


def image_noise(seed: int, numbers: Iterable[int], shape: Sequence[int], stream: int = 0) -> Tensor:
    """Standard Gaussian noise (B, *shape) on the CPU, one image for each of `numbers`.

    Image i of seed s is the same in whatever batch it is asked for. NumPy's SeedSequence keeps all streams independent.

    Args:
        seed: 0 or more.
        numbers: 0 or more each.
        shape: of one image, (C, H, W).
        stream: 0 or more; another one is fresh noise for the same image, such as that of a sampler's next step.
    """
    images = [np.random.default_rng((seed, i, stream)).standard_normal(tuple(shape), dtype=np.float32) for i in numbers]
    return torch.from_numpy(np.stack(images))


def slerp(a: Tensor, b: Tensor, share: float) -> Tensor:
    """A point on the arc from noise `a` to noise `b`, (B, C, H, W): spherical, so that it keeps the length that noise has.

    Shoemake 1985, "Animating Rotation with Quaternion Curves"; images are taken as vectors.

    Args:
        share: 0: `a`; 1: `b`.
    """
    flat_a, flat_b = a.flatten(1), b.flatten(1)
    cosine = torch.nn.functional.cosine_similarity(flat_a, flat_b).clamp(-1, 1)
    angle = torch.acos(cosine)[:, None, None, None]
    if bool((angle < 1e-4).any()):
        return torch.lerp(a, b, share)
    return (torch.sin((1 - share) * angle) * a + torch.sin(share * angle) * b) / torch.sin(angle)
