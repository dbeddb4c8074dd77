"""What the noise-conditional U-Net is made of."""

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

_GROUP = 16
_HEAD = 32


class Normalised(nn.GroupNorm):
    """GroupNorm with 16 channels a group, or one group where the width is no multiple of that.

    Narrower groups do not fill a vector register: on a CPU in bfloat16, channels last, groups of 4 took 9 times as long.
    """

    def __init__(self, channels: int) -> None:
        super().__init__(channels // _GROUP if channels % _GROUP == 0 else 1, channels)


def zero_initialised(layer: nn.Conv2d | nn.Linear) -> nn.Conv2d | nn.Linear:
    """The layer with weights and bias 0, so that what it ends begins as nothing (or as the identity, behind a skip)."""
    nn.init.zeros_(layer.weight)
    if layer.bias is not None:
        nn.init.zeros_(layer.bias)
    return layer


class LevelEmbedding(nn.Module):
    """The noise level as a vector: sines and cosines of it at many frequencies, then two linear layers.

    Vaswani et al. 2017, "Attention Is All You Need", sec. 3.5, with angular frequencies from 1 to 1000 for t in [0, 1].

    Args:
        width: of the vector, 1 or more.
        frequencies: how many, 2 or more.
    """

    frequencies: Tensor

    def __init__(self, width: int, frequencies: int = 32) -> None:
        super().__init__()
        # not in checkpoints: it is the same for all
        self.register_buffer("frequencies", torch.logspace(0, 3, frequencies), persistent=False)
        self.layers = nn.Sequential(nn.Linear(2 * frequencies, width), nn.SiLU(), nn.Linear(width, width))

    def forward(self, t: Tensor) -> Tensor:
        """(B,) -> (B, width)."""
        angles = t[:, None].float() * self.frequencies
        out: Tensor = self.layers(torch.cat((angles.sin(), angles.cos()), dim=1))
        return out


class ResidualBlock(nn.Module):
    """Two normalised convolutions beside a skip; the second is scaled and shifted by what the network is told.

    Args:
        inputs: channels that come in.
        outputs: channels that go out.
        told: width of the vector that it is told.
        dropout: share of features dropped in training.
        attention: what follows the block, if anything.
    """

    def __init__(self, inputs: int, outputs: int, told: int, dropout: float, attention: nn.Module | None) -> None:
        super().__init__()
        self.first = nn.Sequential(Normalised(inputs), nn.SiLU(), nn.Conv2d(inputs, outputs, kernel_size=3, padding=1))
        self.scale_and_shift = zero_initialised(nn.Linear(told, 2 * outputs))
        self.norm = Normalised(outputs)
        last = zero_initialised(nn.Conv2d(outputs, outputs, kernel_size=3, padding=1))
        self.second = nn.Sequential(nn.SiLU(), nn.Dropout(dropout), last)
        self.skip = nn.Conv2d(inputs, outputs, kernel_size=1) if inputs != outputs else nn.Identity()
        self.attention = attention or nn.Identity()

    def forward(self, x: Tensor, told: Tensor) -> Tensor:
        """(B, inputs, H, W) and (B, told) -> (B, outputs, H, W)."""
        scale, shift = self.scale_and_shift(told)[:, :, None, None].chunk(2, dim=1)  # (B, outputs, 1, 1) each
        h = self.norm(self.first(x)) * (1 + scale) + shift
        out: Tensor = self.attention(self.skip(x) + self.second(h))
        return out


class Attention(nn.Module):
    """Every pixel looks at all others, in heads of about 32 channels, beside a skip: (B, C, H, W) -> (B, C, H, W)."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.heads = math.gcd(channels, max(1, channels // _HEAD))
        self.norm = Normalised(channels)
        self.query_key_value = nn.Conv2d(channels, 3 * channels, kernel_size=1)
        self.out = zero_initialised(nn.Conv2d(channels, channels, kernel_size=1))

    def forward(self, x: Tensor) -> Tensor:
        batch, channels, height, width = x.shape
        parts = self.query_key_value(self.norm(x)).reshape(batch, 3, self.heads, channels // self.heads, height * width)
        query, key, value = parts.transpose(-1, -2).unbind(1)  # (B, heads, H * W, C / heads) each
        seen = F.scaled_dot_product_attention(query, key, value)
        out: Tensor = x + self.out(seen.transpose(-1, -2).reshape(batch, channels, height, width))
        return out
