from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from unet_diffusion.data.cache import cached_split
from unet_diffusion.data.image_folder import ImageFolder, decode
from unet_diffusion.data.sources import UnreadableImageError
from unet_diffusion.errors import UserError


def test_modes_keep_their_brightness(tmp_path: Path):
    grey = np.array([[0, 51], [204, 255]], np.uint8)
    palette = Image.fromarray(grey, "L").convert("P")
    cases = {
        "l.png": Image.fromarray(grey),
        "rgb.bmp": Image.fromarray(np.stack([grey] * 3, -1)),
        "p.png": palette,
        "16bit.png": Image.fromarray(grey.astype(np.uint16) * 257),
        "float.tif": Image.fromarray(grey.astype(np.float32) / 255),
        "la.png": Image.merge("LA", [Image.fromarray(grey), Image.new("L", (2, 2), 255)]),
        "cmyk.tiff": Image.fromarray(np.stack([grey] * 3, -1)).convert("CMYK"),
        "lossless.webp": Image.fromarray(np.stack([grey] * 3, -1)),
    }
    for name, image in cases.items():
        image.save(tmp_path / name, **({"lossless": True} if name.endswith("webp") else {}))
        decoded = decode(tmp_path / name).numpy()
        assert decoded.dtype == np.uint8
        assert np.array_equal(decoded, np.broadcast_to(grey, decoded.shape)), name


def test_one_bit_images(tmp_path: Path):
    Image.fromarray(np.array([[0, 255]], np.uint8)).convert("1").save(tmp_path / "bits.png")
    assert decode(tmp_path / "bits.png").tolist() == [[[0, 255]]]


def test_transparency_lies_on_white(tmp_path: Path):
    Image.new("RGBA", (1, 1), (0, 0, 0, 0)).save(tmp_path / "clear.png")
    Image.new("RGBA", (1, 1), (200, 0, 0, 255)).save(tmp_path / "red.png")
    assert decode(tmp_path / "clear.png").flatten().tolist() == [255, 255, 255]
    assert decode(tmp_path / "red.png").flatten().tolist() == [200, 0, 0]
    Image.fromarray(np.array([[0, 70]], np.uint8)).save(tmp_path / "key.png", transparency=0)
    assert decode(tmp_path / "key.png").tolist() == [[[255, 70]]]


def test_numbers_outside_the_range_are_not_guessed_at(tmp_path: Path):
    Image.fromarray(np.array([[0, 70000]], np.int32)).save(tmp_path / "wide.tif")
    Image.fromarray(np.array([[0, 255]], np.float32)).save(tmp_path / "float.tif")
    for name in ("wide.tif", "float.tif"):
        with pytest.raises(UnreadableImageError, match="lie outside"):
            decode(tmp_path / name)


def test_exif_rotation_is_undone(tmp_path: Path):
    image = Image.fromarray(np.array([[10, 20, 30]], np.uint8))
    exif = Image.Exif()
    exif[0x0112] = 6  # stored lying on its left side
    image.save(tmp_path / "turned.png", exif=exif)
    assert decode(tmp_path / "turned.png").tolist() == [[[10], [20], [30]]]


def test_unreadable_files_say_which_and_why(tmp_path: Path):
    (tmp_path / "text.png").write_text("hello")
    Image.new("L", (64, 64)).save(tmp_path / "cut.png")
    (tmp_path / "cut.png").write_bytes((tmp_path / "cut.png").read_bytes()[:50])
    for name in ("text.png", "cut.png"):
        with pytest.raises(UnreadableImageError, match=name):
            decode(tmp_path / name)


def test_a_decompression_bomb_is_not_decoded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 100)
    Image.new("L", (11, 10)).save(tmp_path / "bomb.png")
    with pytest.raises(UnreadableImageError, match="bomb"):
        decode(tmp_path / "bomb.png")


def fill(folder: Path, count: int, value: int = 0) -> None:
    folder.mkdir(parents=True)
    for i in range(count):
        Image.new("L", (20, 30), value + i).save(folder / f"{i:02d}.png")


def test_subfolders_are_classes(tmp_path: Path):
    fill(tmp_path / "cats" / "indoor", 2)
    fill(tmp_path / "dogs", 3)
    split = ImageFolder().open("train", tmp_path)
    assert split.class_names == ("cats", "dogs")
    assert split.labels.tolist() == [0, 0, 1, 1, 1]
    Image.new("L", (4, 4)).save(tmp_path / "loose.PNG")
    loose = ImageFolder().open("train", tmp_path)
    assert (loose.class_names, set(loose.labels)) == ((), {-1})


def test_train_and_test_folders_are_the_splits(tmp_path: Path):
    fill(tmp_path / "train", 4)
    assert ImageFolder().fingerprint("test", tmp_path) is None
    fill(tmp_path / "test", 2)
    assert [len(ImageFolder().open(split, tmp_path)) for split in ("train", "test")] == [4, 2]


def test_a_class_has_one_number_in_both_splits(tmp_path: Path):
    for name in ("train/a", "train/b", "train/c", "test/b", "test/c"):
        fill(tmp_path / name, 1)
    train, test = (ImageFolder().open(split, tmp_path) for split in ("train", "test"))
    assert train.class_names == test.class_names == ("a", "b", "c")
    assert test.labels.tolist() == [1, 2]


def test_the_fingerprint_follows_the_files(tmp_path: Path):
    fill(tmp_path / "images", 3)
    before = ImageFolder().fingerprint("train", tmp_path)
    assert ImageFolder().fingerprint("train", tmp_path) == before
    Image.new("L", (9, 9)).save(tmp_path / "images" / "01.png")
    assert ImageFolder().fingerprint("train", tmp_path) != before


def test_unreadable_images_stop_or_are_skipped_and_counted(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    fill(tmp_path / "images", 5, value=100)
    (tmp_path / "images" / "02.png").write_text("hello")
    (tmp_path / "images" / "04.png").write_bytes(b"")
    with pytest.raises(UserError, match=r"2 of 5 image files.*02\.png.*04\.png.*data\.on_unreadable=skip"):
        cached_split(ImageFolder(), "train", tmp_path / "images", (8, 8), 1, tmp_path / "cache")
    assert not any((tmp_path / "cache").iterdir())
    cached = cached_split(ImageFolder(), "train", tmp_path / "images", (8, 8), 1, tmp_path / "cache", "skip")
    assert cached is not None
    assert cached.images[:, 0, 0, 0].tolist() == [100, 101, 103]
    assert cached.left_out == 2
    assert "2 of 5 image files" in capsys.readouterr().out


@pytest.mark.parametrize("root", [None, "nothing", "empty"])
def test_no_images(tmp_path: Path, root: str | None):
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match=r"data\.root"):
        cached_split(ImageFolder(), "train", None if root is None else tmp_path / root, (8, 8), 1, tmp_path / "cache")
