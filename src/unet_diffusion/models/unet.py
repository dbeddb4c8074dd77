"""A noise-conditional U-Net: residual blocks that hear the noise level, and where asked for the class.

After Ho et al. 2020, "Denoising Diffusion Probabilistic Models", app. B, and Dhariwal and Nichol 2021, "Diffusion Models Beat
GANs", sec. 3, in a size that a laptop trains.
"""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from unet_diffusion.checks import checked_size, checked_widths, number, shortened, whole_number
from unet_diffusion.models.blocks import Attention, LevelEmbedding, Normalised, ResidualBlock, zero_initialised


class UNet(nn.Module):
    """Residual blocks with scale and shift from the level's embedding, skips at every block, optional attention and classes.

    Args:
        channels: widths (c0, ..., cn), one or more; c0 at full resolution, cn after n halvings.
        blocks: residual blocks on the way down at each resolution, 1 to 100, one number for all or one each; on the way up
            there is one more.
        attention: number of the smallest resolutions whose blocks are followed by self-attention, 0 or more.
        image_channels: 1 (grey) or 3 (colour).
        image_size: height and width in pixels; 2**n must divide both. Only checked: other sizes that 2**n divides work as well.
        num_classes: classes that it can be told, 0 for none. A label of -1 or None is the null class.
        embedding: width of the level's embedding, 1 or more.
        dropout: share of features dropped in training inside every block, in [0, 1).

    Raises:
        ValueError: an argument that cannot work; says which would.
    """

    def __init__(
        self,
        channels: Sequence[int] = (32, 96, 192),
        blocks: int | Sequence[int] = 1,
        attention: int = 0,
        image_channels: int = 1,
        image_size: int | Sequence[int] = 16,
        num_classes: int = 0,
        embedding: int = 128,
        dropout: float = 0.0,
    ) -> None:
        super().__init__()
        widths = checked_widths(channels, at_least=1)
        depths = _checked_blocks(blocks, len(widths))
        whole_number("attention", attention, at_least=0)
        checked_size(image_size, halvings=len(widths) - 1)
        if image_channels not in (1, 3):
            raise ValueError(f"image_channels={shortened(image_channels)} must be 1 (grey) or 3 (colour)")
        if number("dropout", dropout, low=0, high=1) == 1:
            raise ValueError(f"dropout={dropout} must be below 1")
        self.size_multiple = 2 ** (len(widths) - 1)
        self.num_classes = whole_number("num_classes", num_classes, at_least=0)
        self.level = LevelEmbedding(whole_number("embedding", embedding, at_least=1))
        self.label = nn.Embedding(num_classes + 1, embedding) if num_classes else None  # the last one is the null class

        def block(inputs: int, outputs: int, resolution: int) -> ResidualBlock:
            attends = resolution >= len(widths) - attention
            return ResidualBlock(inputs, outputs, embedding, dropout, Attention(outputs) if attends else None)

        self.stem = nn.Conv2d(image_channels, widths[0], kernel_size=3, padding=1)
        self.down = nn.ModuleList()
        width, skips = widths[0], [widths[0]]
        for i, (wide, deep) in enumerate(zip(widths, depths, strict=True)):
            if i:
                self.down.append(nn.Conv2d(width, width, kernel_size=3, stride=2, padding=1))
                skips.append(width)
            for _ in range(deep):
                self.down.append(block(width, wide, i))
                width = wide
                skips.append(width)
        self.middle = block(width, width, len(widths) - 1)
        self.up = nn.ModuleList()
        for i, (wide, deep) in reversed(list(enumerate(zip(widths, depths, strict=True)))):
            for _ in range(deep + 1):
                self.up.append(block(width + skips.pop(), wide, i))
                width = wide
            if i:
                self.up.append(nn.Sequential(nn.Upsample(scale_factor=2), nn.Conv2d(width, width, kernel_size=3, padding=1)))
        last = zero_initialised(nn.Conv2d(width, image_channels, kernel_size=3, padding=1))
        self.out = nn.Sequential(Normalised(width), nn.SiLU(), last)

    def forward(self, xt: Tensor, t: Tensor, label: Tensor | None = None) -> Tensor:
        """The network's answer, (B, C, H, W) like `xt`; `t` is (B,) in [0, 1], `label` (B,) class numbers, -1 for none."""
        told = self.level(t)  # (B, embedding)
        if self.label is not None:
            known = t.new_full(t.shape, -1, dtype=torch.long) if label is None else label
            told = told + self.label(torch.where(known < 0, self.num_classes, known))
        told = F.silu(told)
        x = self.stem(xt)  # (B, c0, H, W)
        skips = [x]
        for layer in self.down:
            x = layer(x, told) if isinstance(layer, ResidualBlock) else layer(x)  # (B, ci, H / 2**i, W / 2**i)
            skips.append(x)
        x = self.middle(x, told)
        for layer in self.up:
            x = layer(torch.cat((x, skips.pop()), dim=1), told) if isinstance(layer, ResidualBlock) else layer(x)
        answer: Tensor = self.out(x)  # (B, C, H, W)
        return answer


def _checked_blocks(blocks: object, resolutions: int) -> list[int]:
    each = [blocks] * resolutions if isinstance(blocks, int) else blocks
    if isinstance(each, str) or not isinstance(each, Sequence) or len(each) != resolutions:
        raise ValueError(
            f"blocks={shortened(blocks)} must be one number, or one for each of the {resolutions} widths in channels"
        )
    return [whole_number("blocks", count, at_least=1, at_most=100) for count in each]
