"""Photographs: what is read is written again, with its format, depth, pages and metadata."""

import dataclasses
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import pyvips
from PIL import Image, ImageCms

from unet_diffusion.data.photo_files import encode_photo, read_photo
from unet_diffusion.errors import UserError

PROFILE = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()


def pixels(dtype: Any, channels: int) -> np.ndarray:
    values = np.random.default_rng(0).random((24, 40, channels))
    return (values if dtype == np.float32 else values * np.iinfo(dtype).max).astype(dtype)


def round_trip(file: Path) -> tuple[list[np.ndarray], Path]:
    photo = read_photo(file)
    copy = file.with_name(f"copy-{file.name}")
    copy.write_bytes(encode_photo(photo, photo.pages, photo.kind))
    return photo.pages, copy


@pytest.mark.parametrize("channels", [1, 2, 3, 4])
@pytest.mark.parametrize(
    ("suffix", "dtype"),
    [("png", np.uint8), ("png", np.uint16), ("tif", np.uint8), ("tif", np.uint16)],
)
def test_lossless_files_keep_every_value(tmp_path: Path, suffix: str, dtype: Any, channels: int):
    wide = "16" if dtype == np.uint16 else ""
    kind = ("grey16" if wide else "b-w") if channels < 3 else f"{'' if wide else 's'}rgb{wide}"
    expected = pixels(dtype, channels)
    image = pyvips.Image.new_from_array(expected, interpretation=kind)
    file = tmp_path / f"photo.{suffix}"
    image.write_to_file(str(file))
    (page,), copy = round_trip(file)
    (again,) = read_photo(copy).pages
    assert page.dtype == again.dtype == dtype
    assert np.array_equal(page, expected)
    assert np.array_equal(again, expected)
    assert read_photo(copy).has_alpha == (channels in (2, 4))


def test_float_tiff_and_pages_are_kept(tmp_path: Path):
    tifffile = pytest.importorskip("tifffile")
    expected = pixels(np.float32, 1)[..., 0] * 7 - 2
    tifffile.imwrite(tmp_path / "float.tif", expected)
    _, copy = round_trip(tmp_path / "float.tif")
    assert np.array_equal(tifffile.imread(copy), expected)
    low, high = read_photo(copy).value_range
    assert (low, high) == (expected.min(), expected.max())
    stack = np.stack([pixels(np.uint16, 1)[..., 0], pixels(np.uint16, 1)[::-1, :, 0]])
    tifffile.imwrite(tmp_path / "pages.tif", stack, photometric="minisblack")
    _, copy = round_trip(tmp_path / "pages.tif")
    assert np.array_equal(tifffile.imread(copy), stack)


@pytest.mark.parametrize("suffix", ["jpg", "png", "webp"])
def test_exif_orientation_and_profile_are_kept(tmp_path: Path, suffix: str):
    image = Image.fromarray(pixels(np.uint8, 3))
    exif = image.getexif()
    exif[0x0112], exif[0x010F] = 6, "Maker"  # orientation, make
    image.save(tmp_path / f"photo.{suffix}", exif=exif, icc_profile=PROFILE)
    _, copy = round_trip(tmp_path / f"photo.{suffix}")
    written = Image.open(copy)
    assert written.size == image.size  # stored as it was, not rotated
    assert (written.getexif()[0x0112], written.getexif()[0x010F]) == (6, "Maker")
    assert written.info["icc_profile"] == PROFILE


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("nothing.jpg", "not a JPEG, PNG, TIFF or WebP image"),
        ("photo.heic", "Convert HEIC to JPEG"),
        ("cut.jpg", "premature end"),
        ("cmyk.jpg", "CMYK"),
        ("missing.png", "no such file"),
        ("folder.png", "not a regular file"),
        ("32.tif", "channels of"),
        ("nan.tif", "not finite"),
    ],
)
def test_what_cannot_be_kept_raises(tmp_path: Path, name: str, message: str):
    image = Image.fromarray(pixels(np.uint8, 3))
    (tmp_path / "nothing.jpg").write_bytes(b"nothing")
    (tmp_path / "photo.heic").write_bytes(b"\0\0\0\x18ftypheic")
    image.save(tmp_path / "whole.jpg")
    (tmp_path / "cut.jpg").write_bytes((tmp_path / "whole.jpg").read_bytes()[:-200])
    image.convert("CMYK").save(tmp_path / "cmyk.jpg")
    (tmp_path / "folder.png").mkdir()
    Image.fromarray(np.ones((8, 8), np.int32)).save(tmp_path / "32.tif")
    Image.fromarray(np.full((8, 8), np.nan, np.float32)).save(tmp_path / "nan.tif")
    with pytest.raises(UserError, match=rf"Cannot read .*{name}: .*{message}"):
        read_photo(tmp_path / name)


@pytest.mark.parametrize("name", [b"photo[1].png", b"photo[page=2].png", b"\xff.png"])
def test_files_of_any_name_are_read(tmp_path: Path, name: bytes):
    expected = pixels(np.uint8, 3)
    Image.fromarray(expected).save(tmp_path / "photo.png")
    file = tmp_path / os.fsdecode(name)
    (tmp_path / "photo.png").rename(file)
    (page,) = read_photo(file).pages
    assert np.array_equal(page, expected)


def test_jpeg_quality_is_95(tmp_path: Path):
    smooth = np.tile(np.linspace(0, 255, 64, dtype=np.uint8)[:, None], (1, 64))
    Image.fromarray(smooth).save(tmp_path / "photo.jpg", quality=95)
    (page,), copy = round_trip(tmp_path / "photo.jpg")
    assert np.abs(np.array(Image.open(copy)).astype(int) - page[..., 0]).max() <= 2


def test_a_format_that_would_lose_something_raises(tmp_path: Path):
    pyvips.Image.new_from_array(pixels(np.uint16, 3)).write_to_file(str(tmp_path / "16.png"))
    photo = read_photo(tmp_path / "16.png")
    with pytest.raises(UserError, match=r"format=jpg: has 8 bits, the image uint16"):
        encode_photo(photo, photo.pages, "jpg")
    several = dataclasses.replace(photo, pages=photo.pages * 2)
    with pytest.raises(UserError, match=r"format=png: has no pages"):
        encode_photo(several, several.pages, "png")
    Image.fromarray(pixels(np.uint8, 4)).save(tmp_path / "alpha.png")
    photo = read_photo(tmp_path / "alpha.png")
    with pytest.raises(UserError, match=r"format=jpg: has no transparency"):
        encode_photo(photo, photo.pages, "jpg")
