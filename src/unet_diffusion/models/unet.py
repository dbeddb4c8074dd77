"""Time conditioning: a residual U-Net with a timestep embedding and an optional class embedding.

Ho et al. 2020, "Denoising Diffusion Probabilistic Models", app. B, and Dhariwal and Nichol 2021,
"Diffusion Models Beat GANs on Image Synthesis", sec. 3, at a size that trains on a laptop.
"""

from collections.abc import Sequence
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from unet_diffusion.models.layers import (
    ClassEmbedding,
    Network,
    Norm,
    ResidualBlock,
    TimestepEmbedding,
    norm_layer,
    zero_init,
)


class UNet(Network):
    """U-Net of residual blocks, conditioned on `t` and optionally on a class label.

    patch_size * 2**n must divide height and width of the images.

    Args:
        channels: widths (c0, ..., cn), at least one; c0 at 1 / patch_size of the image
            resolution, cn at 1 / 2**n of that.
        num_blocks: residual blocks per resolution in the encoder, at least 1; the decoder has one
            more per resolution.
        num_attention_resolutions: number of lowest resolutions with self-attention, at least 0.
        image_channels: 1 (grey) or 3 (colour).
        num_classes: number of classes, 0 for an unconditional network. Label -1 is the null class.
        emb_dim: width of the conditioning embedding, at least 1.
        dropout: in every block, in [0, 1).
        interval_embedding: whether the network accepts an interval t - s, for average velocities.
            Its embedding starts at zero, so that it changes nothing before it is trained.
        patch_size: side of the square patches in pixels, at least 1. Each patch becomes one
            position (pixel unshuffle).
        norm: GroupNorm, or LayerNorm of each pixel, which does not depend on the image size.
    """

    def __init__(
        self,
        channels: Sequence[int] = (32, 96, 192),
        num_blocks: int = 1,
        num_attention_resolutions: int = 0,
        image_channels: Literal[1, 3] = 1,
        num_classes: int = 0,
        emb_dim: int = 128,
        dropout: float = 0.0,
        interval_embedding: bool = False,
        patch_size: int = 1,
        norm: Norm = "group",
    ) -> None:
        super().__init__()
        if not channels or min(channels) < 1:
            raise ValueError(
                f"channels={list(channels)}: expected at least 1 width of at least 1, "
                f"such as [64,96]."
            )
        for name, value in (("num_blocks", num_blocks), ("patch_size", patch_size)):
            if value < 1:
                raise ValueError(f"{name}={value}: expected at least 1.")
        self.size_multiple = patch_size * 2 ** (len(channels) - 1)
        self.accepts_interval = interval_embedding
        self.patch_size = patch_size
        self.num_classes = num_classes
        self.time_embedding = TimestepEmbedding(emb_dim)
        self.class_embedding = ClassEmbedding(num_classes, emb_dim) if num_classes else None
        self.interval_embedding = None
        if interval_embedding:
            # Low frequencies: the average velocity changes slowly with the interval.
            self.interval_embedding = TimestepEmbedding(emb_dim, max_frequency=10)
            zero_init(self.interval_embedding.mlp[-1])  # type: ignore[arg-type]

        def block(in_channels: int, out_channels: int, resolution: int) -> ResidualBlock:
            attention = resolution >= len(channels) - num_attention_resolutions
            return ResidualBlock(in_channels, out_channels, emb_dim, dropout, attention, norm)

        patch_channels = image_channels * patch_size**2
        self.stem = nn.Conv2d(patch_channels, channels[0], kernel_size=3, padding=1)
        self.encoder = nn.ModuleList()
        width, skip_widths = channels[0], [channels[0]]
        resolutions = list(enumerate(channels))
        for i, out_width in resolutions:
            if i:
                self.encoder.append(nn.Conv2d(width, width, kernel_size=3, stride=2, padding=1))
                skip_widths.append(width)
            for _ in range(num_blocks):
                self.encoder.append(block(width, out_width, i))
                width = out_width
                skip_widths.append(width)
        self.middle = block(width, width, len(channels) - 1)
        self.decoder = nn.ModuleList()
        for i, out_width in reversed(resolutions):
            for _ in range(num_blocks + 1):
                self.decoder.append(block(width + skip_widths.pop(), out_width, i))
                width = out_width
            if i:
                conv = nn.Conv2d(width, width, kernel_size=3, padding=1)
                self.decoder.append(nn.Sequential(nn.Upsample(scale_factor=2), conv))
        last_conv = zero_init(nn.Conv2d(width, patch_channels, kernel_size=3, padding=1))
        self.out = nn.Sequential(norm_layer(width, norm), nn.SiLU(), last_conv)

    def forward(
        self, xt: Tensor, t: Tensor, label: Tensor | None = None, interval: Tensor | None = None
    ) -> Tensor:
        """Maps xt (B, C, H, W), t (B,) and labels (B,) to the model output, of the shape of xt.

        Without labels, all images are of the null class; without an interval (B,), it is 0.
        """
        emb = self.time_embedding(t)  # (B, emb_dim)
        if self.interval_embedding is not None:
            interval = torch.zeros_like(t) if interval is None else interval
            emb = emb + self.interval_embedding(interval)
        if self.class_embedding is not None:
            if label is None:
                label = torch.full_like(t, -1, dtype=torch.long)
            emb = emb + self.class_embedding(label)
        emb = F.silu(emb)
        x = self.stem(F.pixel_unshuffle(xt, self.patch_size))  # (B, c0, H / patch_size, ...)
        skips = [x]
        for layer in self.encoder:  # (B, ci, H / patch_size / 2**i, ...)
            x = layer(x, emb) if isinstance(layer, ResidualBlock) else layer(x)
            skips.append(x)
        x = self.middle(x, emb)
        for layer in self.decoder:
            if isinstance(layer, ResidualBlock):
                x = layer(torch.cat((x, skips.pop()), dim=1), emb)
            else:
                x = layer(x)
        return F.pixel_shuffle(self.out(x), self.patch_size)
