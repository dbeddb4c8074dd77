"""The image cache: every split is resized once, stored as one uint8 array and memory-mapped.

A cache entry is a folder with images.npy (uint8, N x H x W x C), labels.npy (int64, N), keys.npy
(uint32, N: a checksum of each image before resizing) and meta.json, which is written last: an entry
without it is incomplete and is written again. A lock makes a second process wait for the first.
"""

import json
import shutil
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

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
) -> CachedSplit | None:
    """Opens a split from the cache, which is written first if needed; None if there is none."""
    cache_dir.mkdir(parents=True, exist_ok=True)
    with locked(cache_dir / f".{source.name}.lock"):  # downloads and writes happen once
        fingerprint = source.fingerprint(split, root)
        if fingerprint is None:
            return None
        key = zlib.crc32(f"{fingerprint}|{_VERSION}".encode())
        height, width = image_size
        entry = cache_dir / f"{source.name}-{split}-{height}x{width}x{channels}-{key:08x}"
        cached = _open(entry)
        if cached is None:
            shutil.rmtree(entry, ignore_errors=True)
            raw = source.load(split, root)
            try:
                _write(entry, raw, f"{source.name} {split}", image_size, channels)
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
    entry: Path, raw: RawSplit, title: str, image_size: tuple[int, int], channels: int
) -> None:
    entry.mkdir()
    shape = (len(raw.labels), *image_size, channels)
    keys = np.zeros(len(raw.labels), np.uint32)
    errors: list[str] = []
    chunk_size = 1000 if isinstance(raw.images, np.ndarray) else 1
    starts = range(0, len(raw.labels), chunk_size)
    # An ordinary file: on a full disk a memory map ends the process without a message.
    with (entry / "images.npy").open("wb") as file:
        header = {"descr": "|u1", "fortran_order": False, "shape": shape}
        np.lib.format.write_array_header_1_0(file, header)
        for start in tqdm(starts, f"resizing {title}", unit_scale=chunk_size, delay=1, leave=False):
            rows = slice(start, start + chunk_size)
            try:
                images = _read(raw, rows)
            except UserError as error:
                errors.append(str(error))
                continue
            keys[rows] = [zlib.crc32(image.numpy().tobytes()) for image in images]
            resized = resize(images, image_size, channels).permute(0, 2, 3, 1)
            file.write(resized.contiguous().numpy().tobytes())
    if errors:
        raise UserError(
            f"{len(errors)} of {len(raw.labels)} image files are unreadable, remove them: "
            f"{'; '.join(errors[:20])}"
        )
    np.save(entry / "labels.npy", raw.labels)
    np.save(entry / "keys.npy", keys)
    (entry / "meta.json").write_text(json.dumps({"class_names": list(raw.class_names)}))


def _read(raw: RawSplit, rows: slice) -> Tensor:
    """Images (N, C, H, W) at these rows."""
    if isinstance(raw.images, np.ndarray):
        images = torch.from_numpy(raw.images[rows].copy())
        return images[:, None] if images.ndim == 3 else images.permute(0, 3, 1, 2)
    file = raw.images[rows.start]
    name = None if isinstance(file, Path) else f"image {rows.start}"
    return read_image(file, name)[None]
