"""The base class of networks, and the layers of the time-conditioned U-Net."""

import math
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class Network(nn.Module):
    """A network of a denoiser, called as `net(xt, t, label)`; it knows nothing of diffusion.

    Subclasses set the attributes that differ.
    """

    num_classes: int = 0
    """Number of classes that `label` selects, 0 for an unconditional network."""
    size_multiple: int | None = None
    """Accepts all heights and widths that are multiples of it; None: the training size only."""
    accepts_interval: bool = False
    """Whether the network accepts the interval t - s (B,) as fourth argument."""


class PixelNorm(nn.LayerNorm):
    """LayerNorm over the channels of each pixel of (B, C, H, W).

    Its statistics do not depend on the image size, as GroupNorm's do: a network that is trained on
    crops is the same on whole photographs (Chen et al. 2022, "Simple Baselines for Image
    Restoration", sec. 3.2).
    """

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)


Norm = Literal["group", "pixel"]


def norm_layer(channels: int, norm: Norm) -> nn.Module:
    """The normalisation of a number of channels."""
    return group_norm(channels) if norm == "group" else PixelNorm(channels)


def group_norm(channels: int) -> nn.GroupNorm:
    """GroupNorm with 16 channels per group, or a single group if 16 does not divide `channels`.

    Smaller groups do not fill a vector register: in bfloat16 and channels-last memory format on
    a CPU, groups of 4 channels took 9 times as long.
    """
    return nn.GroupNorm(channels // 16 if channels % 16 == 0 else 1, channels)


def zero_init(layer: nn.Conv2d | nn.Linear) -> nn.Conv2d | nn.Linear:
    """Sets weights and bias to zero, so that a residual branch starts as the identity."""
    nn.init.zeros_(layer.weight)
    if layer.bias is not None:
        nn.init.zeros_(layer.bias)
    return layer


class TimestepEmbedding(nn.Module):
    """Sinusoidal embedding of `t`, followed by a two-layer MLP.

    Vaswani et al. 2017, "Attention Is All You Need", sec. 3.5, with 32 angular frequencies from 1
    to `max_frequency` for t in [0, 1].
    """

    frequencies: Tensor

    def __init__(self, dim: int, max_frequency: float = 1000.0) -> None:
        super().__init__()
        frequencies = torch.logspace(0, math.log10(max_frequency), 32)
        self.register_buffer("frequencies", frequencies, persistent=False)
        self.mlp = nn.Sequential(nn.Linear(64, dim), nn.SiLU(), nn.Linear(dim, dim))

    def forward(self, t: Tensor) -> Tensor:
        """Maps t (B,) to an embedding (B, dim)."""
        angles = t[:, None].float() * self.frequencies
        emb: Tensor = self.mlp(torch.cat((angles.sin(), angles.cos()), dim=1))
        return emb


class ClassEmbedding(nn.Embedding):
    """Embedding of class labels with one extra row for the null class, label -1."""

    def __init__(self, num_classes: int, dim: int) -> None:
        super().__init__(num_classes + 1, dim)
        self.num_classes = num_classes

    def forward(self, label: Tensor) -> Tensor:
        """Maps labels (B,), -1 for the null class, to embeddings (B, dim)."""
        return super().forward(torch.where(label < 0, self.num_classes, label))


class ResidualBlock(nn.Module):
    """Residual block with adaptive group norm: the embedding modulates the second convolution.

    Dhariwal and Nichol 2021, "Diffusion Models Beat GANs on Image Synthesis", sec. 3.1, optionally
    followed by self-attention.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        emb_dim: int,
        dropout: float,
        attention: bool,
        norm: Norm = "group",
    ) -> None:
        super().__init__()
        conv1 = nn.Conv2d(in_channels, out_channels, kernel_size=3, padding=1)
        self.conv1 = nn.Sequential(norm_layer(in_channels, norm), nn.SiLU(), conv1)
        self.scale_shift = zero_init(nn.Linear(emb_dim, 2 * out_channels))
        self.norm = norm_layer(out_channels, norm)
        conv2 = zero_init(nn.Conv2d(out_channels, out_channels, kernel_size=3, padding=1))
        self.conv2 = nn.Sequential(nn.SiLU(), nn.Dropout(dropout), conv2)
        self.skip: nn.Module = nn.Identity()
        if in_channels != out_channels:
            self.skip = nn.Conv2d(in_channels, out_channels, kernel_size=1)
        self.attention = SelfAttention(out_channels) if attention else nn.Identity()

    def forward(self, x: Tensor, emb: Tensor) -> Tensor:
        """Maps x (B, in_channels, H, W) and emb (B, emb_dim) to (B, out_channels, H, W)."""
        scale, shift = self.scale_shift(emb)[:, :, None, None].chunk(2, dim=1)
        h = self.norm(self.conv1(x)) * (1 + scale) + shift
        out: Tensor = self.attention(self.skip(x) + self.conv2(h))
        return out


class SelfAttention(nn.Module):
    """Self-attention over all pixels of (B, C, H, W) with a skip; heads of about 32 channels."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.num_heads = math.gcd(channels, max(1, channels // 32))
        self.norm = group_norm(channels)
        self.qkv = nn.Conv2d(channels, 3 * channels, kernel_size=1)
        self.out = zero_init(nn.Conv2d(channels, channels, kernel_size=1))

    def forward(self, x: Tensor) -> Tensor:
        batch, channels, height, width = x.shape
        head_dim = channels // self.num_heads
        qkv = self.qkv(self.norm(x)).reshape(batch, 3, self.num_heads, head_dim, height * width)
        query, key, value = qkv.transpose(-1, -2).unbind(1)  # (B, heads, H * W, head_dim)
        h = F.scaled_dot_product_attention(query, key, value)
        out: Tensor = x + self.out(h.transpose(-1, -2).reshape(batch, channels, height, width))
        return out
