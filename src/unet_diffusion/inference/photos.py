"""A user's own images, as a network takes them."""

from dataclasses import dataclass
from pathlib import Path

import torch.nn.functional as F
from torch import Tensor

from unet_diffusion.data.cache import fit
from unet_diffusion.data.image_folder import ENDINGS, decode
from unet_diffusion.data.sources import UnreadableImageError
from unet_diffusion.errors import UserError
from unet_diffusion.images import to_float

_MOST_PIXELS = 1024 * 1024


@dataclass(frozen=True)
class Photo:
    """An image from a file."""

    x0: Tensor
    """(C, H, W) in [-1, 1], padded at the right and the bottom where the network's halvings need it."""
    size: tuple[int, int]
    """Height and width without the padding."""

    def cropped(self, images: Tensor) -> Tensor:
        """Images (..., H, W) of the padded size without the padding."""
        return images[..., : self.size[0], : self.size[1]]


def read_photo(path: Path, key: str, image_shape: tuple[int, int, int], size_multiple: int | None) -> Photo:
    """An image file in a network's colours. It keeps its own size where the network allows that.

    Args:
        path: the file.
        key: what the user typed it after, for messages.
        image_shape: (C, H, W) that the network was trained on.
        size_multiple: must divide the sides; None for networks that are tied to their size (the lesson's dense layers): the
            image is then scaled and cropped to it.

    Raises:
        UserError: there is no such file, or it is no image.
    """
    if not path.is_file():
        raise UserError(f"{key}={path} is no file: name an image ({', '.join(ENDINGS)})")
    try:
        image = decode(path, _MOST_PIXELS)
    except UnreadableImageError as error:
        raise UserError(f"{key}: the image cannot be read: {error}") from error
    channels, height, width = image_shape
    if size_multiple is not None:
        height, width = image.shape[-2], image.shape[-1]
    x0 = to_float(fit(image[None], (height, width), channels))
    if size_multiple is not None:
        x0 = F.pad(x0, (0, -width % size_multiple, 0, -height % size_multiple), mode="replicate")
    return Photo(x0[0], (height, width))
