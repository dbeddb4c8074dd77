"""Photographs on disk: every bit depth, page and piece of metadata is kept (libvips)."""

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pyvips

from unet_diffusion.errors import UserError

MAX_PIXELS = 200_000_000
LOADERS = {"jpegload": "jpg", "pngload": "png", "tiffload": "tif", "webpload": "webp"}
SUFFIXES = (".jpg", ".jpeg", ".jfif", ".png", ".tif", ".tiff", ".webp")
_METADATA = ("exif-", "icc-", "xmp-", "iptc-", "orientation", "resolution-unit")
_SAVE_OPTIONS: dict[str, dict[str, Any]] = {
    "jpg": {"Q": 95},
    "png": {},
    "tif": {"compression": "deflate", "predictor": "horizontal"},
    "webp": {"Q": 95},
}


@dataclass(frozen=True)
class Photo:
    """A photograph as stored: not rotated by its EXIF orientation, not converted by its profile."""

    pages: list[np.ndarray]  # (H, W, C), uint8, uint16 or float32; C = 1 to 4
    kind: str  # jpg, png, tif, webp
    has_alpha: bool  # the last channel
    source: Any  # pyvips.Image with the metadata

    @property
    def orientation(self) -> int:
        """The EXIF orientation; 1: none."""
        fields = self.source.get_fields()
        return int(self.source.get("orientation")) if "orientation" in fields else 1

    @cached_property
    def value_range(self) -> tuple[float, float]:
        """Values of black and white: of float pixels outside of [0, 1] the extremes."""
        dtype = self.pages[0].dtype
        if dtype != np.float32:
            return 0.0, float(np.iinfo(dtype).max)
        low = float(min(page.min() for page in self.pages))
        high = float(max(page.max() for page in self.pages))
        return (0.0, 1.0) if low >= 0 and high <= 1 else (low, high)


def read_photo(file: Path) -> Photo:
    """Reads a JPEG, PNG, TIFF or WebP file.

    Raises:
        UserError: if the file cannot be read, has more than 200 megapixels, or pixels of another
            kind than 8 or 16 bits or float.
    """
    try:
        if not file.is_file():
            raise ValueError("no such file." if not file.exists() else "not a regular file.")
        loader = pyvips.vips_lib.vips_foreign_find_load(str(file).encode())
        name = pyvips.ffi.string(loader).decode() if loader != pyvips.ffi.NULL else ""
        kind = LOADERS.get(_nickname(name))
        if kind is None:
            hint = " Convert HEIC to JPEG." if file.suffix.lower() in (".heic", ".heif") else ""
            raise ValueError(f"not a JPEG, PNG, TIFF or WebP image.{hint}")
        pages = {"n": -1} if kind == "tif" else {}
        options = {"access": "sequential", "fail_on": "truncated"} | pages
        image = getattr(pyvips.Image, _nickname(name))(str(file), **options)
        if (count := image.width * image.height) > MAX_PIXELS:
            raise ValueError(f"{count:,} pixels, expected at most {MAX_PIXELS:,}.")
        if image.format not in ("uchar", "ushort", "float") or image.bands > 4:
            raise ValueError(f"{image.bands} channels of {image.format}, expected 8 or 16 bits.")
        if image.interpretation == "cmyk":
            raise ValueError("CMYK colours, convert it to RGB first.")
        pixels = image.numpy()
    except (pyvips.Error, ValueError, MemoryError) as error:
        raise UserError(f"Cannot read {file}: {' '.join(str(error).split())}") from error
    pixels = pixels.reshape(image.height, image.width, image.bands)
    height = image.get_page_height() if kind == "tif" else image.height
    pages_list = [pixels[top : top + height] for top in range(0, image.height, height)]
    return Photo(pages_list, kind, bool(image.hasalpha()), image)


def encode_photo(photo: Photo, pages: list[np.ndarray], kind: str) -> bytes:
    """The file of pages like those of the photo, with its metadata.

    Args:
        photo: as read.
        pages: of the same shape and dtype as those of the photo.
        kind: jpg, png, tif or webp.

    Raises:
        UserError: if this kind cannot store the pages.
    """
    pixels = pages[0] if len(pages) == 1 else np.concatenate(pages)
    if kind in ("jpg", "webp") and pixels.dtype != np.uint8:
        raise UserError(f"format={kind}: has 8 bits, the image {pixels.dtype}. Use format=tif.")
    if kind == "png" and pixels.dtype == np.float32:
        raise UserError("format=png: has no float values. Use format=tif.")
    if kind != "tif" and len(pages) > 1:
        raise UserError(f"format={kind}: has no pages. Use format=tif.")
    source = photo.source
    image = pyvips.Image.new_from_array(pixels, interpretation=source.interpretation)
    image = image.copy(xres=source.xres, yres=source.yres)
    for field in source.get_fields():
        if field.startswith(_METADATA):
            image.set_type(source.get_typeof(field), field, source.get(field))
    if len(pages) > 1:
        image.set_type(pyvips.GValue.gint_type, "page-height", len(pages[0]))
    save = {"jpg": "jpegsave", "png": "pngsave", "tif": "tiffsave", "webp": "webpsave"}[kind]
    encoded: bytes = getattr(image, f"{save}_buffer")(**_SAVE_OPTIONS[kind])
    return encoded


def _nickname(loader: str) -> str:
    """`jpegload` of `VipsForeignLoadJpegFile`."""
    kinds = {"Jpeg": "jpegload", "Png": "pngload", "Tiff": "tiffload", "Webp": "webpload"}
    return next((name for key, name in kinds.items() if f"Load{key}" in loader), "")
