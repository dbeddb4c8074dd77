"""Archives of images (.npz) by anybody: looked at before they are read, and read a few images at a time."""

import lzma
import math
import zipfile
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import IO

import numpy as np
import torch
from torch import Tensor

from unet_diffusion.data.image_folder import MOST_PIXELS
from unet_diffusion.errors import UserError, first_line, printable

_MOST_IMAGES = 10_000_000
_READ_BYTES = 1 << 26
_DAMAGED = (
    OSError, ValueError, KeyError, EOFError, MemoryError, RuntimeError, zipfile.BadZipFile, zlib.error, lzma.LZMAError
)  # fmt: skip


class ImageArchive:
    """The images in arr_0 of an .npz, as sample.py and the ADM suite write it, and their class numbers in arr_1, if any.

    Only what is asked for is held in memory, so that neither a large archive nor one that claims to be large fills it.

    Args:
        path: the file; uint8 (N, H, W, C) with C = 1 or 3 in arr_0, whole numbers (N,) in arr_1.

    Raises:
        UserError: it is damaged, or holds something else.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        try:
            with zipfile.ZipFile(path) as archive:
                names = archive.namelist()
                dtype, shape = _described(archive, "arr_0")
                labelled = _described(archive, "arr_1") if "arr_1.npy" in names else None
        except _DAMAGED as error:
            raise self._refusal(error) from error
        pixels = math.prod(shape[1:3])
        if dtype != np.uint8 or len(shape) != 4 or shape[3] not in (1, 3) or not 0 < pixels <= MOST_PIXELS:
            raise UserError(f"images={path}: its arr_0 is {dtype} {list(shape)}, where uint8 (N, H, W, 1 or 3) is needed")
        if shape[0] > _MOST_IMAGES:
            raise UserError(f"images={path} claims to hold {shape[0]:,} images, and at most {_MOST_IMAGES:,} are taken")
        self._shape = shape
        self.label = None if labelled is None else self._labels(*labelled)

    def __len__(self) -> int:
        return self._shape[0]

    def read(self, numbers: np.ndarray) -> Iterator[Tensor]:
        """The images at these places, which rise, as uint8 (n, C, H, W) with some of them at a time.

        Raises:
            UserError: the archive is damaged.
        """
        each = math.prod(self._shape[1:])
        at_a_time = max(1, _READ_BYTES // each)
        place = 0
        try:
            with zipfile.ZipFile(self.path) as archive, archive.open("arr_0.npy") as stream:
                _header(stream)
                for first in range(0, len(numbers), at_a_time):
                    images = np.empty((len(numbers[first : first + at_a_time]), *self._shape[1:]), dtype=np.uint8)
                    for image, number in zip(images, numbers[first : first + at_a_time].tolist(), strict=True):
                        _skip(stream, (number - place) * each)
                        content = stream.read(each)
                        if len(content) < each:
                            raise ValueError("it is cut short")
                        image[:] = np.frombuffer(content, np.uint8).reshape(self._shape[1:])
                        place = number + 1
                    yield torch.from_numpy(images).permute(0, 3, 1, 2)
        except _DAMAGED as error:
            raise self._refusal(error) from error

    def _labels(self, dtype: np.dtype, shape: tuple[int, ...]) -> Tensor:
        if dtype.kind not in "iu" or shape != self._shape[:1]:
            raise UserError(
                f"images={self.path}: its arr_1 is {dtype} {list(shape)}, where a class number for each of {len(self)} "
                f"is needed"
            )
        try:
            with zipfile.ZipFile(self.path) as archive, archive.open("arr_1.npy") as stream:
                _header(stream)
                return torch.from_numpy(np.frombuffer(stream.read(), dtype).astype(np.int64))
        except _DAMAGED as error:
            raise self._refusal(error) from error

    def _refusal(self, error: BaseException) -> UserError:
        why = printable(first_line(error))
        return UserError(f"images={self.path} cannot be read ({why}): it must hold images in arr_0")


def _described(archive: zipfile.ZipFile, name: str) -> tuple[np.dtype, tuple[int, ...]]:
    """Type and shape of one of the archive's arrays, whose bytes must be as many as that takes."""
    entry = archive.getinfo(f"{name}.npy")
    with archive.open(entry) as stream:
        dtype, shape, header = _header(stream)
    if dtype.hasobject:
        raise ValueError(f"{name} holds pickled objects, which are not loaded")
    if header + dtype.itemsize * math.prod(shape) != entry.file_size:
        raise ValueError(f"{name} has {entry.file_size:,} bytes, which does not go with its shape {list(shape)}")
    return dtype, shape


def _header(stream: IO[bytes]) -> tuple[np.dtype, tuple[int, ...], int]:
    """Type, shape and number of bytes of an array's header, which the stream has then gone past."""
    version = np.lib.format.read_magic(stream)
    if version not in ((1, 0), (2, 0)):
        raise ValueError(f"version {version} of NumPy's format is not known")
    read = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
    shape, fortran_order, dtype = read(stream)
    if fortran_order and len(shape) > 1:
        raise ValueError("it is stored in Fortran's order: write numpy.ascontiguousarray of the images")
    if min(shape, default=0) < 0:
        raise ValueError(f"its shape {list(shape)} is none")
    return dtype, tuple(shape), stream.tell()


def _skip(stream: IO[bytes], count: int) -> None:
    """Goes past `count` bytes without keeping them."""
    while count > 0:
        content = stream.read(min(count, _READ_BYTES))
        if not content:
            raise ValueError("it is cut short")
        count -= len(content)
