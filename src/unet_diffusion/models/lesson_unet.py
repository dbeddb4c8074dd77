"""The lesson's U-Net: convolutions with BatchNorm, max-pooling down, transposed convolutions up.

After Ronneberger et al. 2015, "U-Net: Convolutional Networks for Biomedical Image Segmentation", in the small shape that
the lesson "From U-Nets to Diffusion" gives it.
"""

import itertools
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from unet_diffusion.checks import checked_size, checked_widths, shortened


def _conv_bn_relu(in_channels: int, out_channels: int) -> list[nn.Module]:
    return [
        nn.Conv2d(in_channels, out_channels, kernel_size=3, padding=1),
        nn.BatchNorm2d(out_channels),
        nn.ReLU(),
    ]


class DownBlock(nn.Sequential):
    """Two convolutions, then half the size: (B, in, H, W) -> (B, out, H/2, W/2)."""

    def __init__(self, in_channels: int, out_channels: int) -> None:
        super().__init__(
            *_conv_bn_relu(in_channels, out_channels),
            *_conv_bn_relu(out_channels, out_channels),
            nn.MaxPool2d(2),
        )


class UpBlock(nn.Module):
    """Joins the skip, doubles the size, one more convolution: two of (B, in, H, W) -> (B, out, 2H, 2W)."""

    def __init__(self, in_channels: int, out_channels: int) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            nn.ConvTranspose2d(2 * in_channels, out_channels, kernel_size=3, stride=2, padding=1, output_padding=1),
            nn.BatchNorm2d(out_channels),
            nn.ReLU(),
            *_conv_bn_relu(out_channels, out_channels),
        )

    def forward(self, x: Tensor, skip: Tensor) -> Tensor:
        """Both inputs are (B, in, H, W); the skip is the output of the down block of the same size."""
        out: Tensor = self.layers(torch.cat((x, skip), dim=1))
        return out


class LessonUNet(nn.Module):
    """A blind denoiser: it looks at the noisy image alone, never at the noise level.

    Args:
        channels: widths (c0, ..., cn), two or more; c0 at full resolution, cn after n halvings.
        image_channels: 1 (grey) or 3 (colour).
        image_size: height and width in pixels, one number for a square; 2**n must divide both.
        dense_bottleneck: send the smallest feature map through three linear layers of width c1. The lesson draws them, but
            its forward pass goes round them. With them the network is tied to `image_size`; without, any size that
            2**n divides will do, and there are no unused parameters.

    Raises:
        ValueError: a width, a channel count or an image size that cannot work; says which would.
    """

    def __init__(
        self,
        channels: Sequence[int] = (16, 32, 64),
        image_channels: int = 1,
        image_size: int | Sequence[int] = 16,
        dense_bottleneck: bool = True,
    ) -> None:
        super().__init__()
        widths = checked_widths(channels, at_least=2)
        if image_channels not in (1, 3):
            raise ValueError(f"image_channels={shortened(image_channels)} must be 1 (grey) or 3 (colour)")
        halvings = len(widths) - 1
        height, width = checked_size(image_size, halvings=halvings)
        self.size_multiple = None if dense_bottleneck else 2**halvings
        small_h, small_w = height >> halvings, width >> halvings
        flat = widths[-1] * small_h * small_w

        self.stem = nn.Sequential(*_conv_bn_relu(image_channels, widths[0]))
        self.downs = nn.ModuleList(DownBlock(a, b) for a, b in itertools.pairwise(widths))
        self.bottleneck: nn.Module
        if dense_bottleneck:
            self.bottleneck = nn.Sequential(
                nn.Flatten(),
                nn.ReLU(),
                nn.Linear(flat, widths[1]),
                nn.ReLU(),
                nn.Linear(widths[1], widths[1]),
                nn.ReLU(),
                nn.Linear(widths[1], flat),
                nn.ReLU(),
                nn.Unflatten(1, (widths[-1], small_h, small_w)),
            )
        else:
            self.bottleneck = nn.ReLU()
        self.up0 = nn.Sequential(*_conv_bn_relu(widths[-1], widths[-1]))
        self.ups = nn.ModuleList(UpBlock(b, a) for a, b in reversed(list(itertools.pairwise(widths))))
        self.out = nn.Sequential(
            *_conv_bn_relu(widths[0], widths[0]),
            nn.Conv2d(widths[0], image_channels, kernel_size=3, padding=1),
        )

    def forward(self, xt: Tensor, t: Tensor | None = None, label: Tensor | None = None) -> Tensor:
        """The network's answer, (B, C, H, W) like `xt`; `t` and `label` are taken so that all networks are called alike."""
        x = self.stem(xt)  # (B, c0, H, W)
        skips = []
        for down in self.downs:
            x = down(x)  # (B, ci, H / 2**i, W / 2**i)
            skips.append(x)
        x = self.up0(self.bottleneck(x))  # (B, cn, H / 2**n, W / 2**n)
        for up in self.ups:
            x = up(x, skips.pop())
        answer: Tensor = self.out(x)  # (B, C, H, W)
        return answer
