"""The cache: every split is resized once, kept on disk as one uint8 array, and memory-mapped.

A cache is a folder with `images.bin` (uint8, N x H x W x C), `labels.bin` (int64, N) and `meta.json` (shapes, class names and
checksums). It is written under a temporary name and renamed when whole, so a killed run leaves none half-made. Of two processes
on a machine that need the same one, the second waits for the first; two machines that share a disk would both write it, and the
second would find the first one's and drop its own.
"""

import contextlib
import json
import math
import os
import secrets
import shutil
import time
import zlib
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, Literal

import numpy as np
from torch import Tensor
from torchvision.transforms.v2 import RGB, CenterCrop, Grayscale, Resize
from tqdm import tqdm

from unet_diffusion.data.sources import ImageSource, RawSplit, SplitName, UnreadableImageError
from unet_diffusion.errors import UserError
from unet_diffusion.locks import one_at_a_time

OnUnreadable = Literal["stop", "skip"]
_VERSION = 2  # part of the key: raise it when the same source would give other bytes
_STALE_AFTER_S = 24 * 3600
_BLOCK = 1 << 24
_CHUNK_PIXELS = 1 << 24  # resized at once
_LONGEST = 8  # times the wanted side, that a strip of an image may have when it is scaled
_MAPPED_AT_MOST = 1 << 28  # bytes; fewer are read through the map, which is faster


@dataclass(frozen=True)
class CachedSplit:
    """One split, resized and memory-mapped."""

    images: np.ndarray
    """uint8 (N, H, W, C), a read-only memory map."""
    labels: np.ndarray
    """int64 (N,)."""
    class_names: tuple[str, ...]
    left_out: int = 0
    """How many image files could not be read and were skipped."""
    file: Path | None = None
    """Where `read` takes the images from; None: from `images`."""

    def read(self, rows: np.ndarray) -> np.ndarray:
        """A copy of the images at these places, uint8 (n, H, W, C).

        Many images are taken from their file, not through the memory map: what a map has touched counts as memory of the
        process, and training touches all of it.

        Raises:
            UserError: the file has gone.
        """
        if self.file is None:
            return np.asarray(self.images[rows])
        taken = np.empty((len(rows), *self.images.shape[1:]), dtype=np.uint8)
        size = taken[0].nbytes if len(rows) else 0
        try:
            # opened for each batch, so that processes and threads share no position in it
            with self.file.open("rb", buffering=0) as stream:
                for image, row in zip(taken, rows.tolist(), strict=True):
                    stream.seek(row * size)
                    stream.readinto(image)
        except OSError as error:
            raise UserError(f"the image cache {self.file} is gone ({error}): start again, which makes it anew") from error
        return taken


def cached_split(
    source: ImageSource,
    split: SplitName,
    root: Path | None,
    size: tuple[int, int],
    channels: int,
    cache_dir: Path,
    on_unreadable: OnUnreadable = "stop",
) -> CachedSplit | None:
    """The split at this size, from the cache, which is made or mended where needed; None where the source has no such split.

    Args:
        size: (height, width) in pixels.
        channels: 1 (grey) or 3 (colour).
        cache_dir: folder of all caches; made where needed.
        on_unreadable: `stop` at images that cannot be decoded, or `skip` and count them.

    Raises:
        UserError: the images are not there or unreadable, or the cache cannot be written.
    """
    fingerprint = source.fingerprint(split, root)
    if fingerprint is None:
        return None
    height, width = size
    mark = zlib.crc32(f"{fingerprint}|{on_unreadable}|{_VERSION}".encode())
    folder = cache_dir / f"{source.name}-{split}-{height}x{width}x{channels}-{mark:08x}"
    cached = _open(folder)
    if cached is not None:
        return cached
    with one_at_a_time(folder):
        title = f"{source.name} {split}"
        return _open(folder) or _made(folder, source.open(split, root), title, size, channels, on_unreadable)


def _made(
    folder: Path, raw: RawSplit, title: str, size: tuple[int, int], channels: int, on_unreadable: OnUnreadable
) -> CachedSplit:
    cache_dir = folder.parent
    try:
        cache_dir.mkdir(parents=True, exist_ok=True)
        _remove_stale(cache_dir)
        temporary = cache_dir / f".{folder.name}.{secrets.token_hex(6)}.tmp"
        temporary.mkdir()
        try:
            _write(temporary, raw, title, size, channels, on_unreadable)
            _put_in_place(temporary, folder)
        finally:
            shutil.rmtree(temporary, ignore_errors=True)
    except OSError as error:
        raise UserError(f"the image cache in data.cache_dir={cache_dir} cannot be written ({error}): name another") from error
    cached = _open(folder)
    if cached is None:
        raise UserError(f"the image cache {folder} is damaged right after it was written: check the disk")
    return cached


def fit(images: Tensor, size: tuple[int, int], channels: int) -> Tensor:
    """uint8 (n, C, h, w) of any size to (n, channels, *size): scaled (antialiased) to cover the size, then centre-cropped."""
    if images.shape[1] > channels:
        images = Grayscale()(images)
    height, width = images.shape[-2:]
    scale = max(size[0] / height, size[1] / width)
    # of a long strip, only the part around its middle, as scaled up the whole of it may not fit into memory
    height, width = (
        min(side, math.ceil(_LONGEST * wanted / scale)) for side, wanted in zip((height, width), size, strict=True)
    )
    images = CenterCrop((height, width))(images) if images.shape[-2:] != (height, width) else images
    covering = [max(size[0], round(height * scale)), max(size[1], round(width * scale))]
    fitted: Tensor = CenterCrop(size)(Resize(covering, antialias=True)(images))
    return RGB()(fitted) if channels > fitted.shape[1] else fitted


def _write(folder: Path, raw: RawSplit, title: str, size: tuple[int, int], channels: int, on_unreadable: OnUnreadable) -> None:
    labels: list[np.ndarray] = []
    unreadable: list[str] = []
    checksum = 0
    with (folder / "images.bin").open("wb") as stream:
        progress = tqdm(total=len(raw), desc=f"resizing {title}", unit=" images", delay=1.0, leave=False)
        chunk_size = max(1, min(raw.chunk_size, _CHUNK_PIXELS // (size[0] * size[1])))
        for start in range(0, len(raw), chunk_size):
            stop = min(start + chunk_size, len(raw))
            try:
                images = fit(raw.read(start, stop), size, channels).permute(0, 2, 3, 1).contiguous().numpy().tobytes()
            except UnreadableImageError as error:
                unreadable.append(str(error))
            else:
                stream.write(images)
                checksum = zlib.crc32(images, checksum)
                labels.append(raw.labels[start:stop])
            progress.update(stop - start)
        progress.close()
        _flush(stream)
    if unreadable:
        _report(unreadable, len(raw), on_unreadable)
    if not labels:
        raise UserError(f"none of the {len(raw)} images of {title} can be read")
    kept = np.concatenate(labels)
    with (folder / "labels.bin").open("wb") as stream:
        stream.write(kept.tobytes())
        _flush(stream)
    meta = {
        "shape": [len(kept), *size, channels],
        "class_names": list(raw.class_names),
        "left_out": len(unreadable),
        "images_crc32": checksum,
        "labels_crc32": zlib.crc32(kept.tobytes()),
    }
    with (folder / "meta.json").open("wb") as stream:
        stream.write(json.dumps(meta, ensure_ascii=True).encode())
        _flush(stream)


def _report(unreadable: list[str], total: int, on_unreadable: OnUnreadable) -> None:
    listed = "; ".join(repr(name)[1:-1] for name in unreadable[:20])
    more = f"; and {len(unreadable) - 20} more" if len(unreadable) > 20 else ""
    if on_unreadable == "stop":
        raise UserError(
            f"{len(unreadable)} of {total} image files cannot be read: {listed}{more}: "
            f"mend or remove them, or leave them out with data.on_unreadable=skip"
        )
    print(f"{len(unreadable)} of {total} image files cannot be read: {listed}{more}")


def _open(folder: Path) -> CachedSplit | None:
    """The cache in `folder`, or None where it is missing or damaged."""
    try:
        meta = json.loads((folder / "meta.json").read_text())
        shape = tuple(meta["shape"])
        files = {"images": int(np.prod(shape)), "labels": 8 * shape[0]}
        for part, length in files.items():
            path = folder / f"{part}.bin"
            if path.stat().st_size != length or _checksum(path) != meta[f"{part}_crc32"]:
                return None
        return CachedSplit(
            images=np.memmap(folder / "images.bin", dtype=np.uint8, mode="r", shape=shape),
            labels=np.fromfile(folder / "labels.bin", dtype=np.int64),
            class_names=tuple(meta["class_names"]),
            left_out=int(meta["left_out"]),
            file=folder / "images.bin" if files["images"] > _MAPPED_AT_MOST else None,
        )
    except (OSError, ValueError, KeyError, TypeError, IndexError):
        return None


def _checksum(path: Path) -> int:
    checksum = 0
    with path.open("rb") as stream:
        while block := stream.read(_BLOCK):
            checksum = zlib.crc32(block, checksum)
    return checksum


def _put_in_place(temporary: Path, folder: Path) -> None:
    if _open(folder) is not None:
        return  # another run was faster; its bytes are the same
    if folder.exists():  # a damaged one: out of the way in one step, so that nobody opens it half-removed
        with contextlib.suppress(OSError):
            folder.rename(temporary / "damaged")
    with contextlib.suppress(OSError):  # another run put its own there in between
        temporary.rename(folder)
        shutil.rmtree(folder / "damaged", ignore_errors=True)


def _remove_stale(cache_dir: Path) -> None:
    """Removes what runs that were killed while writing have left behind."""
    for path in cache_dir.glob(".*.tmp"):
        with contextlib.suppress(OSError):
            if time.time() - path.stat().st_mtime > _STALE_AFTER_S:
                shutil.rmtree(path)


def _flush(stream: BinaryIO) -> None:
    stream.flush()
    os.fsync(stream.fileno())
