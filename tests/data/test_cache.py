from pathlib import Path
from unittest.mock import Mock

import numpy as np
import pytest
import torch
from PIL import Image

from unet_diffusion.data import cache
from unet_diffusion.data.cache import CachedSplit, cached_split, resize
from unet_diffusion.data.sources import FashionMNISTMini


def build(folder: Path, size: tuple[int, int] = (16, 16), channels: int = 1) -> CachedSplit:
    cached = cached_split(FashionMNISTMini(), "test", None, size, channels, folder)
    assert cached is not None
    return cached


def entries(folder: Path) -> list[Path]:
    return [path for path in folder.iterdir() if path.is_dir()]


def test_resize_equals_pillows_antialiased_resize(tmp_path: Path):
    raw = FashionMNISTMini().load("test", None).images[:50]
    bilinear = Image.Resampling.BILINEAR
    expected = [np.asarray(Image.fromarray(image).resize((16, 16), bilinear)) for image in raw]
    difference = build(tmp_path).images[:50, :, :, 0].astype(int) - np.stack(expected)
    assert np.abs(difference).max() <= 1


def test_resize_covers_the_size_and_crops_the_centre():
    image = torch.zeros(1, 1, 8, 24, dtype=torch.uint8)
    image[..., 8:16] = 200  # the middle third
    assert (resize(image, (8, 8), 1) == 200).all()
    assert (resize(image, (4, 4), 3) == 200).all()
    assert resize(image.mT, (6, 12), 3).shape == (1, 3, 6, 12)
    thin = torch.full((1, 1, 1, 1 << 22), 90, dtype=torch.uint8)  # in little memory
    assert (resize(thin, (512, 512), 1) == 90).all()


def test_grey_is_the_luma_of_colour():
    red = torch.zeros(1, 3, 4, 4, dtype=torch.uint8)
    red[:, 0] = 100
    assert resize(red, (4, 4), 1)[0, 0, 0, 0].item() == 30  # 0.299 * 100
    grey = torch.arange(256, dtype=torch.uint8).reshape(1, 1, 16, 16)
    assert torch.equal(resize(grey.expand(-1, 3, -1, -1), (16, 16), 1), grey)


def test_second_opening_reads_the_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    first = build(tmp_path)
    monkeypatch.setattr(FashionMNISTMini, "load", None)  # would fail if it were called
    second = build(tmp_path)
    assert np.array_equal(first.images, second.images)
    assert np.array_equal(first.labels, second.labels)
    assert second.class_names[0] == "t-shirt"
    assert isinstance(second.images, np.memmap)
    assert not second.images.flags.writeable


def test_each_size_channel_count_and_version_has_its_own_entry(tmp_path: Path, monkeypatch):
    arguments = (((16, 16), 1), ((8, 12), 1), ((16, 16), 3))
    shapes = {build(tmp_path, size, channels).images.shape[1:] for size, channels in arguments}
    assert shapes == {(16, 16, 1), (8, 12, 1), (16, 16, 3)}
    monkeypatch.setattr(cache, "_VERSION", cache._VERSION + 1)
    build(tmp_path)
    assert len(entries(tmp_path)) == 4


@pytest.mark.parametrize("name", ["images.npy", "labels.npy", "keys.npy", "meta.json"])
@pytest.mark.parametrize("damage", ["truncated", "missing"])
def test_damaged_entry_is_written_again(tmp_path: Path, name: str, damage: str):
    expected = np.array(build(tmp_path).images)
    (entry,) = entries(tmp_path)
    (entry / name).write_bytes((entry / name).read_bytes()[:-10])
    if damage == "missing":
        (entry / name).unlink()
    assert np.array_equal(build(tmp_path).images, expected)
    assert entries(tmp_path) == [entry]
    files = sorted(path.name for path in entry.iterdir())
    assert files == ["images.npy", "keys.npy", "labels.npy", "meta.json"]


def test_interrupted_write_leaves_no_entry(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(np, "save", Mock(side_effect=KeyboardInterrupt))
    with pytest.raises(KeyboardInterrupt):
        build(tmp_path)
    assert entries(tmp_path) == []
