"""Malformed images: single files, folders and archives, given to every script that takes a user's images."""

import io
import os
import struct
import zipfile
import zlib
from collections.abc import Callable
from pathlib import Path
from random import Random

import numpy as np
from PIL import Image

from fuzzing.case import RUNS, Case, Materials

_FORMATS = {"PNG": ".png", "JPEG": ".jpg", "WEBP": ".webp", "BMP": ".bmp", "TIFF": ".tif", "GIF": ".png"}
_MODES = ("1", "L", "P", "RGB", "RGBA", "LA", "I;16", "I", "F", "CMYK")
_NAMES = (
    "photo{}", "Gärten 猫 🐈{}", "two\nlines{}", "tab\t'quote\"{}", "-m{}", "a=b,c{}", "${{oc.env:HOME}}{}", ".hidden{}", "x" * 240 + "{}",
    "bytes\udcff\udcfe{}", "percent%s{}", "{}", "a\\b{}", " {}",
)  # fmt: skip
_FULL = "data=fashion_mnist_mini"


def malformed_image(rng: Random, materials: Materials, folder: Path) -> Case:
    """One malformed file (or what is no file) where an image belongs."""
    run = rng.choice(RUNS)
    kind = rng.choices(("sample", "denoise", "folder", "train", "archive", "scored"), (25, 25, 15, 15, 15, 5))[0]
    if kind == "archive":
        (folder / "images.npz").write_bytes(_archive(rng))
        if rng.random() < 0.5:
            return Case("evaluate", ["images=images.npz", _FULL, "num_images=null"])
        return Case("evaluate", ["images=images.npz", _FULL, "num_images=200"])
    images = folder / "images"
    images.mkdir()
    bad = _bad_file(rng, images)
    typed = f"'{str(bad.relative_to(folder)).replace(chr(92), chr(92) * 2).replace(chr(39), chr(92) + chr(39))}'"
    if kind == "sample":
        return Case("sample", [f"run=runs/{run}", "num_images=1", f"start={typed}"])
    if kind == "denoise":
        return Case("denoise", [f"run=runs/{run}", f"input={typed}"])
    if kind == "folder":
        _good_files(images, 3)
        return Case("denoise", [f"run=runs/{run}", "input=images", "noise.percent=0.5"])
    if kind == "train":
        _good_files(images, 20)
        typed = ["data=image_folder", "data.root=images", "data.batch_size=4", "data.image_size=16", "model=lesson_narrow"]
        typed += ["callbacks.progress_bar.refresh_rate=0", "callbacks.model_summary.max_depth=0", "precision=fp32"]
        typed += ["data.on_unreadable=skip"] if rng.random() < 0.3 else []
        return Case("train", [*typed, "trainer.fast_dev_run=true"])
    _good_files(images, 200)
    return Case("evaluate", ["images=images", _FULL, "num_images=null"])


def _good_files(folder: Path, count: int) -> None:
    for i in range(count):
        Image.new("L", (20, 18), i).save(folder / f"good-{i:03d}.png")


def _bad_file(rng: Random, folder: Path) -> Path:
    """A path in the folder with something at it that is not a plain good image."""
    form = rng.choice(sorted(_FORMATS))
    name = rng.choice(_NAMES).format(rng.choice((_FORMATS[form], ".png", ".JPG", ".jpeg"))) or "x"
    path = folder / name
    special = rng.random()
    if special < 0.14:
        _no_file(rng, path)
        return path
    content = _image(rng, form)
    for change in rng.sample(_CHANGES, rng.choice((0, 1, 1, 1, 2))):
        content = change(rng, content)
    try:
        path.write_bytes(content)
    except OSError:  # a name that this file system does not take
        path = folder / "photo.png"
        path.write_bytes(content)
    return path


def _no_file(rng: Random, path: Path) -> None:
    kind = rng.choice(("fifo", "loop", "zero", "random", "folder", "dangling", "huge", "tty", "circle"))
    if kind == "fifo":
        os.mkfifo(path)
    elif kind == "loop":
        path.symlink_to(path.name)
    elif kind == "folder":
        path.mkdir()
    elif kind == "circle":
        path.symlink_to("..")
    elif kind == "huge":
        with path.open("wb") as stream:
            stream.write(rng.choice((b"RIFF\xff\xff\xff\x7fWEBPVP8 ", b"\x89PNG\r\n\x1a\n", b"BM", b"")))
            stream.truncate(1 << 36)  # takes no room on the disk
    else:
        path.symlink_to({"zero": "/dev/zero", "random": "/dev/urandom", "tty": "/dev/tty", "dangling": "nowhere"}[kind])


def _image(rng: Random, form: str) -> bytes:
    size = rng.choice(((16, 16), (17, 23), (1, 1), (1, 300), (3000, 1), (64, 48), (5, 5)))
    mode = rng.choice(_MODES)
    image = Image.new(mode, size, 1) if mode in ("I;16", "I", "F") else Image.effect_noise(size, 60).convert(mode)
    stream = io.BytesIO()
    if rng.random() < 0.15 and form in ("GIF", "WEBP", "TIFF", "PNG"):
        frames = [Image.effect_noise(size, 60).convert("L") for _ in range(5)]
        frames[0].save(stream, form, save_all=True, append_images=frames[1:])
        return stream.getvalue()
    exif = Image.Exif()
    exif[0x0112] = rng.choice((1, 3, 6, 8, 0, 99))
    try:
        image.save(stream, form, **({"exif": exif} if form in ("JPEG", "PNG", "WEBP") and rng.random() < 0.4 else {}))
    except (OSError, ValueError, TypeError):
        stream = io.BytesIO()
        image.convert("L").save(stream, form)
    return stream.getvalue()


def _cut(rng: Random, content: bytes) -> bytes:
    return content[: rng.choice((0, 1, 8, 20, 33, len(content) // 2, max(0, len(content) - 1)))]


def _flip(rng: Random, content: bytes) -> bytes:
    changed = bytearray(content)
    for _ in range(rng.choice((1, 3, 20))):
        if changed:
            changed[rng.randrange(len(changed))] = rng.randrange(256)
    return bytes(changed)


def _flip_early(rng: Random, content: bytes) -> bytes:
    return _flip(rng, content[:60]) + content[60:]


def _repeat(rng: Random, content: bytes) -> bytes:
    at = rng.randrange(len(content) + 1)
    return content[:at] + content * rng.choice((1, 3)) + content[at:]


def _of_another_kind(rng: Random, content: bytes) -> bytes:
    starts = (
        b"GIF89a",
        b"\x89PNG\r\n\x1a\n",
        b"II*\0",
        b"MM\0*",
        b"BM",
        b"\xff\xd8\xff",
        b"RIFF",
        b"%!PS-Adobe-3.0 EPSF",
        b"P6 9 9 255\n",
    )
    return rng.choice(starts) + content[rng.choice((0, 8)) :]


def _text(rng: Random, content: bytes) -> bytes:
    return rng.choice((b"not an image", b"<svg/>", b"import os; os.mkdir('code-was-run')", b"\0" * 100, b"\xff" * 500))


def _large(rng: Random, content: bytes) -> bytes:
    """A small file that says it is large, or that is large when it is decoded."""
    kind = rng.randrange(6)
    if kind == 0:
        return _png(rng.choice((1 << 31, 1 << 30, 100_000, 0)), rng.choice((1, 100_000)), zlib.compress(bytes(1000)))
    if kind == 1:
        return _png(20_000, 20_000, zlib.compress(bytes(1 << 22)))
    if kind == 2:
        return _png(9_000, 9_000, zlib.compress(bytes(9_001 * 9_000), 1))  # 81 megapixels of nothing
    if kind == 3:
        return _png(1, 80_000_000, zlib.compress(bytes(1 << 20)))
    if kind == 4:
        return _png(4_000_000, 1, zlib.compress(bytes(4_000_001)))
    return _png(8, 8, zlib.compress(bytes(72)), text=zlib.compress(bytes(1 << 27)))


def _png(width: int, height: int, data: bytes, text: bytes | None = None) -> bytes:
    def chunk(name: bytes, content: bytes) -> bytes:
        return struct.pack(">I", len(content)) + name + content + struct.pack(">I", zlib.crc32(name + content))

    head = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0))
    words = b"" if text is None else chunk(b"zTXt", b"a\0\0" + text)
    return b"\x89PNG\r\n\x1a\n" + head + words + chunk(b"IDAT", data) + chunk(b"IEND", b"")


_CHANGES: list[Callable[[Random, bytes], bytes]] = [_cut, _flip, _flip, _flip_early, _repeat, _of_another_kind, _text, _large]


def _archive(rng: Random) -> bytes:
    """An .npz that is damaged, holds something else, or lies about what it holds."""
    count = rng.choice((0, 1, 200, 210))
    arrays = {"arr_0": np.zeros((count, 16, 16, 1), np.uint8), "arr_1": np.zeros(count, np.int64)}
    arrays["arr_0"] = rng.choice(
        (
            arrays["arr_0"], arrays["arr_0"], arrays["arr_0"], arrays["arr_0"].astype(float), arrays["arr_0"][..., 0], np.zeros(3),
            np.asfortranarray(np.zeros((200, 16, 16, 3), np.uint8)), np.zeros((200, 0, 16, 1), np.uint8), np.array(["a"]),
            np.array([{}], dtype=object), np.zeros((200, 1, 5000, 1), np.uint8), np.zeros((), np.uint8), np.zeros((200, 16, 16, 2), np.uint8),
        )
    )  # fmt: skip
    arrays["arr_1"] = rng.choice(
        (
            arrays["arr_1"],
            np.full(count, -7),
            np.full(count, 1 << 60),
            np.zeros(3, np.int8),
            np.full(count, np.nan),
            np.array([None]),
        )
    )
    if rng.random() < 0.4:
        del arrays["arr_1"]
    if rng.random() < 0.1:
        arrays["images"] = arrays.pop("arr_0")
    stream = io.BytesIO()
    rng.choice((np.savez, np.savez_compressed))(stream, **arrays)
    content = stream.getvalue()
    kind = rng.randrange(5)
    if kind == 0:
        return _flip(rng, content)
    if kind == 1:
        return _cut(rng, content)
    if kind == 2:
        return _lying_archive(rng)
    return _flip_early(rng, content) if kind == 3 else content


def _lying_archive(rng: Random) -> bytes:
    """One whose header claims more than there is, or whose content is far larger than the file."""
    shape = rng.choice(
        ("(1000000000000, 16, 16, 1)", "(200, 60000, 60000, 3)", "(-1, 16, 16, 1)", "(20000000, 2, 2, 1)", "(True, 1, 1, 1)")
    )
    head = f"{{'descr': '|u1', 'fortran_order': False, 'shape': {shape}, }}".encode()
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w", zipfile.ZIP_DEFLATED) as archive, archive.open("arr_0.npy", "w") as member:
        member.write(b"\x93NUMPY\x01\x00" + struct.pack("<H", len(head)) + head)
        for _ in range(rng.choice((0, 1, 76))):
            member.write(bytes(1 << 20))
    return stream.getvalue()
