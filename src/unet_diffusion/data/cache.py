"""The image cache: every split is resized once, stored as one uint8 array and memory-mapped.

A cache entry is a folder with images.npy (uint8, N x H x W x C), labels.npy (int64, N), keys.npy
(uint32, N: a checksum of each image before resizing) and meta.json, which is written last: an entry
without it is incomplete and is written again. A lock makes a second process wait for the first.
Photographs are stored as tiles: all tiles of a photograph have its key.
"""

import json
import os
import shutil
import zlib
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

import numpy as np
import torch
from filelock import FileLock, Timeout
from torch import Tensor
from torchvision.transforms.v2 import RGB, CenterCrop, Resize
from tqdm import tqdm

from unet_diffusion.data.sources import ImageSource, RawSplit, SplitName, read_image
from unet_diffusion.errors import UserError

_VERSION = 5  # raise it if the same source gives different bytes


@dataclass(frozen=True)
class Tiling:
    """How photographs are scaled before they are cut into tiles."""

    scale: float  # in (0, 1]
    max_side: int  # of the scaled photograph, in pixels

    def __str__(self) -> str:
        return f"scale{self.scale:g}-max{self.max_side}"


@dataclass(frozen=True)
class CachedSplit:
    """One split, resized and memory-mapped."""

    images: np.ndarray  # uint8 (N, H, W, C), a read-only memory map
    labels: np.ndarray  # int64 (N,), -1 for images without a class
    keys: np.ndarray  # uint32 (N,), a checksum of each image before resizing
    class_names: tuple[str, ...]

    def read(self, rows: np.ndarray) -> Tensor:
        """A copy of the images at these rows, uint8 (n, C, H, W)."""
        return torch.from_numpy(self.images[rows]).permute(0, 3, 1, 2)


def cached_split(
    source: ImageSource,
    split: SplitName,
    root: Path | None,
    image_size: tuple[int, int],
    channels: int,
    cache_dir: Path,
    tiling: Tiling | None = None,
) -> CachedSplit | None:
    """Opens a split from the cache, which is written first if needed; None if there is none.

    With `tiling`, images are not resized to `image_size`, but cut into tiles of that size.
    """
    cache_dir.mkdir(parents=True, exist_ok=True)
    is_writable = os.access(cache_dir, os.W_OK)  # others can be read
    lock = locked(cache_dir / f".{source.name}.lock") if is_writable else nullcontext()
    with lock:  # downloads and writes happen once
        fingerprint = source.fingerprint(split, root)
        if fingerprint is None:
            return None
        key = zlib.crc32(f"{fingerprint}|{_VERSION}".encode())
        height, width = image_size
        size = f"{height}x{width}x{channels}" + ("" if tiling is None else f"-{tiling}")
        entry = cache_dir / f"{source.name}-{split}-{size}-{key:08x}"
        cached = _open(entry)
        if cached is None:
            shutil.rmtree(entry, ignore_errors=True)
            raw = source.load(split, root)
            try:
                _write(entry, raw, f"{source.name} {split}", image_size, channels, tiling)
            except BaseException as error:  # a killed process leaves an entry without meta.json
                shutil.rmtree(entry, ignore_errors=True)
                if isinstance(error, OSError):
                    message = f"cannot be written ({error.strerror}). Set UNET_DIFFUSION_CACHE."
                    raise UserError(f"{entry}: {message}") from error
                raise
            cached = _open(entry)
            assert cached is not None
    return cached


@contextmanager
def locked(path: Path, timeout: float = -1) -> Iterator[None]:
    """Holds the lock of a file; raises filelock.Timeout after `timeout` seconds (-1: never)."""
    lock = FileLock(path, timeout=timeout)
    try:
        lock.acquire()
    except (OSError, NotImplementedError) as error:
        if isinstance(error, Timeout):
            raise
        raise UserError(
            f"{path}: cannot be locked ({error}). Use a folder on a local disk: "
            f"UNET_DIFFUSION_CACHE or cache_dir for the cache, output_dir or run_dir for runs."
        ) from error
    try:
        yield
    finally:
        lock.release()


def resize(images: Tensor, image_size: tuple[int, int], channels: int) -> Tensor:
    """Scales (antialiased) to cover the size, crops the centre, and converts the channels.

    Maps uint8 (N, C, h, w) to uint8 `(N, channels, *image_size)`.
    """
    if images.shape[1] > channels:
        images = _grey(images)
    height, width = images.shape[-2:]
    scale = max(image_size[0] / height, image_size[1] / width)
    # Cropped before it is scaled: a thin image would need much memory.
    crop = [
        max(1, min(side, round(new / scale)))
        for side, new in zip((height, width), image_size, strict=True)
    ]
    resized: Tensor = Resize(image_size, antialias=True)(CenterCrop(crop)(images))
    return RGB()(resized) if channels > resized.shape[1] else resized


def cut_tiles(
    image: Tensor, tile_size: tuple[int, int], channels: int, tiling: Tiling, name: object = "image"
) -> Tensor:
    """Scales a photograph and cuts it into tiles that cover it, with the least overlap.

    A photograph that would be smaller than a tile is scaled less. Maps uint8 (1, C, h, w) to uint8
    `(n, channels, *tile_size)`.

    Raises:
        UserError: if the photograph is smaller than a tile; it starts with `name`.
    """
    height, width = image.shape[-2:]
    needed = max(tile_size[0] / height, tile_size[1] / width)
    if needed > 1:
        size = f"{tile_size[1]} x {tile_size[0]}"
        raise UserError(f"{name}: {width} x {height} pixels, a tile (data.tile_size) has {size}.")
    scale = max(needed, min(tiling.scale, tiling.max_side / max(height, width)))
    scaled = (max(round(height * scale), tile_size[0]), max(round(width * scale), tile_size[1]))
    image = resize(image, scaled, channels)
    tops, lefts = (
        [round(i) for i in np.linspace(0, side - tile, -(-side // tile))]
        for side, tile in zip(scaled, tile_size, strict=True)
    )
    tiles = [
        image[..., top : top + tile_size[0], left : left + tile_size[1]]
        for top in tops
        for left in lefts
    ]
    return torch.cat(tiles)


def _grey(images: Tensor) -> Tensor:
    """Luma (N, 1, H, W) of uint8 colours, as in Pillow: grey colours keep their value."""
    red, green, blue = images.to(torch.int32).unbind(1)
    luma = (19_595 * red + 38_470 * green + 7_471 * blue + (1 << 15)) >> 16
    return luma[:, None].to(torch.uint8)


def _open(entry: Path) -> CachedSplit | None:
    """The cache entry, or None if it is missing or damaged."""
    try:
        class_names = json.loads((entry / "meta.json").read_text())["class_names"]
        images = np.load(entry / "images.npy", mmap_mode="r")
        labels, keys = np.load(entry / "labels.npy"), np.load(entry / "keys.npy")
        return CachedSplit(images, labels, keys, tuple(class_names))
    except (OSError, ValueError, KeyError, EOFError):
        return None


def _write(
    entry: Path,
    raw: RawSplit,
    title: str,
    image_size: tuple[int, int],
    channels: int,
    tiling: Tiling | None,
) -> None:
    entry.mkdir()
    count = len(raw.labels)
    keys = np.zeros(count, np.uint32)
    numbers: list[int] = []  # of the image of each row
    errors: list[str] = []
    chunk_size = 1000 if isinstance(raw.images, np.ndarray) and tiling is None else 1
    starts = range(0, count, chunk_size)
    # An ordinary file: on a full disk a memory map ends the process without a message.
    with (entry / "images.npy").open("wb") as file:
        _write_header(file, count, image_size, channels)
        for start in tqdm(starts, f"resizing {title}", unit_scale=chunk_size, delay=1, leave=False):
            rows = range(count)[start : start + chunk_size]
            try:
                images = _read(raw, slice(start, start + chunk_size))
                if tiling is None:
                    stored = resize(images, image_size, channels)
                else:
                    stored = cut_tiles(images, image_size, channels, tiling, raw.images[start])
            except UserError as error:
                errors.append(str(error))
                continue
            keys[rows] = [zlib.crc32(image.numpy().tobytes()) for image in images]
            numbers += [i for i in rows for _ in range(len(stored) // len(rows))]
            file.write(stored.permute(0, 2, 3, 1).contiguous().numpy().tobytes())
        file.seek(0)  # NumPy leaves room in the header for a larger number
        _write_header(file, len(numbers), image_size, channels)
    if errors:
        raise UserError(
            f"{len(errors)} of {count} image files cannot be used, remove them: "
            f"{'; '.join(errors[:20])}"
        )
    np.save(entry / "labels.npy", raw.labels[numbers])
    np.save(entry / "keys.npy", keys[numbers])
    (entry / "meta.json").write_text(json.dumps({"class_names": list(raw.class_names)}))


def _write_header(file: BinaryIO, count: int, image_size: tuple[int, int], channels: int) -> None:
    shape = (count, *image_size, channels)
    header = {"descr": "|u1", "fortran_order": False, "shape": shape}
    np.lib.format.write_array_header_1_0(file, header)


def _read(raw: RawSplit, rows: slice) -> Tensor:
    """Images (N, C, H, W) at these rows."""
    if isinstance(raw.images, np.ndarray):
        images = torch.from_numpy(raw.images[rows].copy())
        return images[:, None] if images.ndim == 3 else images.permute(0, 3, 1, 2)
    file = raw.images[rows.start]
    name = None if isinstance(file, Path) else f"image {rows.start}"
    return read_image(file, name)[None]
