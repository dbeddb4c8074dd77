"""Photographs on disk: every bit depth, page and piece of metadata is kept (libvips)."""

import re
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pyvips

from unet_diffusion.errors import UserError

MAX_PIXELS = 200_000_000
SUFFIXES = (".jpg", ".jpeg", ".jfif", ".png", ".tif", ".tiff", ".webp")
_METADATA = ("exif-", "icc-", "xmp-", "iptc-", "orientation", "resolution-unit")
_SIGNATURES = {
    rb"\xff\xd8\xff": "jpg",
    rb"\x89PNG\r\n": "png",
    rb"II[\x2a\x2b]\0|MM\0[\x2a\x2b]": "tif",
    rb"RIFF....WEBP": "webp",
}
"""Patterns of the first bytes of a file."""
_OPERATIONS = {"jpg": "jpeg", "png": "png", "tif": "tiff", "webp": "webp"}
"""Names of the formats in libvips."""
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
        UserError: if the file cannot be read, has more than 200 megapixels, or has other than grey
            or colour pixels of 8 or 16 bits or finite float values.
    """
    try:
        if not file.is_file():
            raise ValueError("no such file." if not file.exists() else "not a regular file.")
        with file.open("rb") as opened:  # libvips takes names in UTF-8 only
            kind = _kind(opened.read(16), file.suffix)
            opened.seek(0)
            source = pyvips.Source.new_from_descriptor(opened.fileno())
            load = getattr(pyvips.Image, f"{_OPERATIONS[kind]}load_source")
            options = {"n": -1} if kind == "tif" else {}  # all pages
            image = load(source, access="sequential", fail_on="truncated", **options)
            _check_pixels(image)
            pixels = image.numpy().reshape(image.height, image.width, image.bands)
        if pixels.dtype == np.float32 and not np.isfinite(pixels).all():
            raise ValueError("values that are not finite.")
    except (pyvips.Error, OSError, ValueError, MemoryError) as error:
        raise UserError(f"Cannot read {file}: {' '.join(str(error).split())}") from error
    height = image.get_page_height() if kind == "tif" else image.height
    pages = [pixels[top : top + height] for top in range(0, image.height, height)]
    return Photo(pages, kind, bool(image.hasalpha()), image)


def _kind(start: bytes, suffix: str) -> str:
    """The format of a file that starts with these bytes."""
    for signature, kind in _SIGNATURES.items():
        if re.match(signature, start, re.DOTALL):
            return kind
    hint = " Convert HEIC to JPEG." if suffix.lower() in (".heic", ".heif") else ""
    raise ValueError(f"not a JPEG, PNG, TIFF or WebP image.{hint}")


def _check_pixels(image: Any) -> None:
    """Checks size, depth and channels of a pyvips.Image before its pixels are decoded."""
    if (count := image.width * image.height) > MAX_PIXELS:
        raise ValueError(f"{count:,} pixels, expected at most {MAX_PIXELS:,}.")
    if image.interpretation == "cmyk":
        raise ValueError("CMYK colours, convert it to RGB first.")
    has_colours = image.bands - image.hasalpha() in (1, 3)
    if image.format not in ("uchar", "ushort", "float") or not has_colours:
        expected = "1 or 3 and alpha, of 8 or 16 bits or float"
        raise ValueError(f"{image.bands} channels of {image.format}, expected {expected}.")


def check_format(photo: Photo, kind: str) -> None:
    """Checks that a format (jpg, png, tif or webp) can store what a photograph has."""
    dtype = photo.pages[0].dtype
    if kind in ("jpg", "webp") and dtype != np.uint8:
        raise UserError(f"format={kind}: has 8 bits, the image {dtype}. Use format=tif.")
    if kind == "jpg" and photo.has_alpha:
        raise UserError("format=jpg: has no transparency. Use format=png.")
    if kind == "png" and dtype == np.float32:
        raise UserError("format=png: has no float values. Use format=tif.")
    if kind != "tif" and len(photo.pages) > 1:
        raise UserError(f"format={kind}: has no pages. Use format=tif.")


def encode_photo(photo: Photo, pages: list[np.ndarray], kind: str) -> bytes:
    """The file of pages like those of the photo, with its metadata.

    Args:
        photo: as read.
        pages: of the same shape and dtype as those of the photo.
        kind: jpg, png, tif or webp.

    Raises:
        UserError: if this format cannot store the photo, see `check_format`.
    """
    check_format(photo, kind)
    pixels = pages[0] if len(pages) == 1 else np.concatenate(pages)
    source = photo.source
    image = pyvips.Image.new_from_array(pixels, interpretation=source.interpretation)
    image = image.copy(xres=source.xres, yres=source.yres)
    for field in source.get_fields():
        if field.startswith(_METADATA):
            image.set_type(source.get_typeof(field), field, source.get(field))
    if len(pages) > 1:
        image.set_type(pyvips.GValue.gint_type, "page-height", len(pages[0]))
    save = getattr(image, f"{_OPERATIONS[kind]}save_buffer")
    encoded: bytes = save(**_SAVE_OPTIONS[kind])
    return encoded
