"""The lesson's U-Net: convolutions with BatchNorm, max-pooling down, transposed convolutions up.

Ronneberger et al. 2015, "U-Net: Convolutional Networks for Biomedical Image Segmentation", at the
size used in the lesson "From U-Nets to Diffusion".
"""

import itertools
import math
from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor, nn

from unet_diffusion.models.layers import Network


def _conv_bn_relu(in_channels: int, out_channels: int) -> list[nn.Module]:
    return [
        nn.Conv2d(in_channels, out_channels, kernel_size=3, padding=1),
        nn.BatchNorm2d(out_channels),
        nn.ReLU(),
    ]


class DownBlock(nn.Sequential):
    """Two convolutions and max-pooling: (B, in, H, W) -> (B, out, H/2, W/2)."""

    def __init__(self, in_channels: int, out_channels: int) -> None:
        super().__init__(
            *_conv_bn_relu(in_channels, out_channels),
            *_conv_bn_relu(out_channels, out_channels),
            nn.MaxPool2d(2),
        )


class UpBlock(nn.Module):
    """Concatenates the skip connection, upsamples, convolves: (B, in, H, W) -> (B, out, 2H, 2W)."""

    def __init__(self, in_channels: int, out_channels: int) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            nn.ConvTranspose2d(
                2 * in_channels, out_channels, kernel_size=3, stride=2, padding=1, output_padding=1
            ),
            nn.BatchNorm2d(out_channels),
            nn.ReLU(),
            *_conv_bn_relu(out_channels, out_channels),
        )

    def forward(self, x: Tensor, skip: Tensor) -> Tensor:
        """Both inputs are (B, in, H, W); `skip` is the output of the down block of that size."""
        out: Tensor = self.layers(torch.cat((x, skip), dim=1))
        return out


class LessonUNet(Network):
    """A denoiser that is unconditional on `t`: its input is the noisy image alone.

    Args:
        channels: widths (c0, ..., cn), at least two; c0 at full resolution, cn at 1 / 2**n of it.
        image_channels: 1 (grey) or 3 (colour).
        image_size: height and width in pixels, one number for a square; 2**n must divide both.
        dense_bottleneck: whether the smallest feature map passes through three linear layers of
            width c1. The lesson defines them, but its forward pass skips them. With them the
            network works for `image_size` only; without them, for every size that 2**n divides.
    """

    def __init__(
        self,
        channels: Sequence[int] = (16, 32, 64),
        image_channels: Literal[1, 3] = 1,
        image_size: int | Sequence[int] = 16,
        dense_bottleneck: bool = True,
    ) -> None:
        super().__init__()
        factor = 2 ** (len(channels) - 1)
        if len(channels) < 2 or min(channels) < 1:
            raise ValueError(
                f"channels={list(channels)}: expected at least 2 widths of at least 1, "
                f"such as [16,32,64]."
            )
        height, width = (image_size, image_size) if isinstance(image_size, int) else image_size
        if min(height, width) < 1 or height % factor or width % factor:
            larger = [max(1, -(-side // factor)) * factor for side in (height, width)]
            fitting = larger[0] if isinstance(image_size, int) else larger
            raise ValueError(
                f"image_size={image_size}: the network with {len(channels)} widths downsamples by "
                f"{factor}, which must divide height and width. The next size is {fitting}."
            )
        self.size_multiple = None if dense_bottleneck else factor
        small = (channels[-1], height // factor, width // factor)

        self.stem = nn.Sequential(*_conv_bn_relu(image_channels, channels[0]))
        self.downs = nn.ModuleList(DownBlock(a, b) for a, b in itertools.pairwise(channels))
        self.bottleneck: nn.Module = nn.ReLU()
        if dense_bottleneck:
            layers: list[nn.Module] = [nn.Flatten(), nn.ReLU()]
            flat, hidden = math.prod(small), channels[1]
            for a, b in ((flat, hidden), (hidden, hidden), (hidden, flat)):
                layers += [nn.Linear(a, b), nn.ReLU()]
            self.bottleneck = nn.Sequential(*layers, nn.Unflatten(1, small))
        self.up0 = nn.Sequential(*_conv_bn_relu(channels[-1], channels[-1]))
        pairs = reversed(list(itertools.pairwise(channels)))
        self.ups = nn.ModuleList(UpBlock(b, a) for a, b in pairs)
        self.out = nn.Sequential(
            *_conv_bn_relu(channels[0], channels[0]),
            nn.Conv2d(channels[0], image_channels, kernel_size=3, padding=1),
        )

    def forward(self, xt: Tensor, t: Tensor | None = None, label: Tensor | None = None) -> Tensor:
        """Maps xt (B, C, H, W) to the model output of that shape; ignores `t` and `label`."""
        x = self.stem(xt)  # (B, c0, H, W)
        skips = []
        for down in self.downs:
            x = down(x)  # (B, ci, H / 2**i, W / 2**i)
            skips.append(x)
        x = self.up0(self.bottleneck(x))  # (B, cn, H / 2**n, W / 2**n)
        for up in self.ups:
            x = up(x, skips.pop())
        model_output: Tensor = self.out(x)  # (B, C, H, W)
        return model_output
