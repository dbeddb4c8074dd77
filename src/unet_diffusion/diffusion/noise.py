"""Noise that depends on a seed and an image's number alone: not on the batch size, the device or the training stream."""

from collections.abc import Iterable, Sequence

import numpy as np
import torch
from torch import Tensor


def image_noise(seed: int, numbers: Iterable[int], shape: Sequence[int]) -> Tensor:
    """Standard Gaussian noise (B, *shape) on the CPU, one image for each of `numbers`.

    Image i of seed s is the same in whatever batch it is asked for. NumPy's SeedSequence keeps the streams of all pairs
    (s, i) independent.

    Args:
        seed: 0 or more.
        numbers: 0 or more each.
        shape: of one image, (C, H, W).
    """
    images = [np.random.default_rng((seed, i)).standard_normal(tuple(shape), dtype=np.float32) for i in numbers]
    return torch.from_numpy(np.stack(images))
