"""Image files of the user as input of a network."""

from dataclasses import dataclass
from pathlib import Path

import torch.nn.functional as F
from torch import Tensor

from unet_diffusion.data.cache import resize
from unet_diffusion.data.image_folder import read_image
from unet_diffusion.images import to_float

MAX_PIXELS = 1 << 20


@dataclass(frozen=True)
class InputImage:
    """An image, padded to a size that the network accepts."""

    x0: Tensor
    """(1, C, H, W) in [-1, 1], padded at the right and the bottom."""
    size: tuple[int, int]
    """Height and width without padding."""

    def crop(self, images: Tensor) -> Tensor:
        """Removes the padding from images (..., H, W)."""
        return images[..., : self.size[0], : self.size[1]]


def load_input_image(
    path: Path, image_shape: tuple[int, int, int], size_multiple: int | None
) -> InputImage:
    """Reads an image file with the channels of the network.

    Args:
        path: the file.
        image_shape: (C, H, W) of the training images.
        size_multiple: divisor of the sizes that the network accepts, and the image keeps its size;
            None: the network accepts its training size only, and the image is resized to it.

    Raises:
        ValueError: the file cannot be read or is too large.
    """
    image = read_image(path)[None]
    channels, height, width = image_shape
    if size_multiple is not None:
        height, width = image.shape[-2:]
        if height * width > MAX_PIXELS:
            raise ValueError(f"{path}: {width} x {height} pixels, expected at most {MAX_PIXELS:,}.")
    x0 = to_float(resize(image, (height, width), channels))
    if size_multiple is not None:
        padding = (0, -width % size_multiple, 0, -height % size_multiple)
        x0 = F.pad(x0, padding, mode="replicate")
    return InputImage(x0, (height, width))
