from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from unet_diffusion.data.cache import cached_split
from unet_diffusion.data.sources import ImageFolder, read_image


def test_all_modes_keep_their_brightness(tmp_path: Path):
    grey = np.array([[0, 51], [204, 255]], np.uint8)
    colour = Image.fromarray(np.stack([grey] * 3, -1))
    images = {
        "l.png": Image.fromarray(grey),
        "rgb.bmp": colour,
        "p.png": Image.fromarray(grey).convert("P"),
        "16bit.png": Image.fromarray(grey.astype(np.uint16) * 257),
        "float.tif": Image.fromarray(grey.astype(np.float32) / 255),
        "la.png": Image.merge("LA", [Image.fromarray(grey), Image.new("L", (2, 2), 255)]),
        "cmyk.tiff": colour.convert("CMYK"),
        "lossless.webp": colour,
    }
    for name, image in images.items():
        image.save(tmp_path / name, **({"lossless": True} if name.endswith("webp") else {}))
        array = read_image(tmp_path / name).numpy()
        assert array.dtype == np.uint8
        assert np.array_equal(array, np.broadcast_to(grey, array.shape)), name
    Image.fromarray(grey).convert("1").save(tmp_path / "bits.png")
    assert set(read_image(tmp_path / "bits.png").flatten().tolist()) == {0, 255}


def test_transparency_is_composed_on_white(tmp_path: Path):
    for alpha, expected in ((0, [255, 255, 255]), (255, [200, 0, 0])):
        Image.new("RGBA", (1, 1), (200, 0, 0, alpha)).save(tmp_path / "red.png")
        assert read_image(tmp_path / "red.png").flatten().tolist() == expected
    Image.fromarray(np.array([[0, 70]], np.uint8)).save(tmp_path / "key.png", transparency=0)
    assert read_image(tmp_path / "key.png").tolist() == [[[255, 70]]]


def test_exif_orientation_is_applied(tmp_path: Path):
    exif = Image.Exif()
    exif[0x0112] = 6  # rotated by 90 degrees
    image = Image.fromarray(np.array([[10, 20, 30]], np.uint8))
    image.save(tmp_path / "rotated.png", exif=exif)
    assert read_image(tmp_path / "rotated.png").tolist() == [[[10], [20], [30]]]


def test_unreadable_files_are_named(tmp_path: Path):
    (tmp_path / "text.png").write_text("hello")
    (tmp_path / "empty.png").touch()
    Image.new("L", (64, 64)).save(tmp_path / "whole.png")
    (tmp_path / "truncated.png").write_bytes((tmp_path / "whole.png").read_bytes()[:50])
    for name in ("text.png", "empty.png", "truncated.png", "missing.png"):
        with pytest.raises(ValueError, match=f"^Cannot read .*{name}: "):
            read_image(tmp_path / name)


def test_pillows_pixel_limit_is_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 100)
    Image.new("L", (11, 10)).save(tmp_path / "large.png")
    with pytest.raises(ValueError, match=r"^Cannot read .*large\.png: .*bomb"):
        read_image(tmp_path / "large.png")


def write_images(folder: Path, count: int, value: int = 0) -> None:
    folder.mkdir(parents=True)
    for i in range(count):
        Image.new("L", (20, 30), value + i).save(folder / f"{i:02d}.png")


def test_subfolders_are_classes(tmp_path: Path):
    write_images(tmp_path / "cats" / "indoor", 2)
    write_images(tmp_path / "dogs", 3)
    split = ImageFolder().load("train", tmp_path)
    assert split.class_names == ("cats", "dogs")
    assert split.labels.tolist() == [0, 0, 1, 1, 1]
    Image.new("L", (4, 4)).save(tmp_path / "outside.PNG")
    split = ImageFolder().load("train", tmp_path)
    assert (split.class_names, set(split.labels)) == ((), {-1})


def test_folders_train_and_test_are_the_splits(tmp_path: Path):
    write_images(tmp_path / "train", 4)
    assert ImageFolder().fingerprint("test", tmp_path) is None
    write_images(tmp_path / "test", 2)
    sizes = [len(ImageFolder().load(split, tmp_path).labels) for split in ("train", "test")]
    assert sizes == [4, 2]


def test_a_class_has_the_same_index_in_both_splits(tmp_path: Path):
    for name in ("train/a", "train/b", "train/c", "test/b", "test/c"):
        write_images(tmp_path / name, 1)
    train, test = (ImageFolder().load(split, tmp_path) for split in ("train", "test"))
    assert train.class_names == test.class_names == ("a", "b", "c")
    assert test.labels.tolist() == [1, 2]


def test_fingerprint_changes_with_the_files(tmp_path: Path):
    write_images(tmp_path / "images", 3)
    before = ImageFolder().fingerprint("train", tmp_path)
    assert ImageFolder().fingerprint("train", tmp_path) == before
    Image.new("L", (9, 9)).save(tmp_path / "images" / "01.png")
    assert ImageFolder().fingerprint("train", tmp_path) != before


def test_unreadable_images_are_all_named(tmp_path: Path):
    images, cache = tmp_path / "images", tmp_path / "cache"
    write_images(images, 5, value=100)
    (images / "02.png").write_text("hello")
    (images / "04.png").write_bytes(b"")
    message = r"2 of 5 image files are unreadable, remove them: .*02\.png.*04\.png"
    with pytest.raises(ValueError, match=message):
        cached_split(ImageFolder(), "train", images, (8, 8), 1, cache)
    assert not any(path.is_dir() for path in cache.iterdir())


@pytest.mark.parametrize("root", [None, "missing", "empty"])
def test_no_images_raises(tmp_path: Path, root: str | None):
    (tmp_path / "empty").mkdir()
    path = None if root is None else tmp_path / root
    with pytest.raises(ValueError, match=r"data\.root"):
        cached_split(ImageFolder(), "train", path, (8, 8), 1, tmp_path / "cache")
