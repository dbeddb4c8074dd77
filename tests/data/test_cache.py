import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers import at_once, noting
from PIL import Image

from unet_diffusion.data import cache
from unet_diffusion.data.cache import CachedSplit, cached_split, fit
from unet_diffusion.data.fashion_mnist import FashionMNISTMini
from unet_diffusion.data.image_folder import ImageFolder
from unet_diffusion.errors import UserError

BUILD = """
import sys
from pathlib import Path
from unet_diffusion.data.cache import cached_split
from unet_diffusion.data.image_folder import ImageFolder
print("ready", flush=True)
cached = cached_split(ImageFolder(), "train", Path(sys.argv[1]), (16, 16), 3, Path(sys.argv[2]))
print(int(cached.images.sum()))
"""


def mini(folder: Path, size: tuple[int, int] = (16, 16), channels: int = 1) -> CachedSplit:
    cached = cached_split(FashionMNISTMini(), "test", None, size, channels, folder)
    assert cached is not None
    return cached


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Enough images that converting them takes a second or so."""
    folder = tmp_path_factory.mktemp("photos")
    rng = np.random.default_rng(0)
    for i in range(600):
        Image.fromarray(rng.integers(0, 256, (96, 128, 3), dtype=np.uint8)).save(folder / f"{i:04d}.bmp")
    return folder


def test_resizing_is_pillows_antialiased_one(tmp_path: Path):
    raw = FashionMNISTMini().open("test", None).read(0, 50)[:, 0].numpy()
    pillow = np.stack([np.asarray(Image.fromarray(image).resize((16, 16), Image.Resampling.BILINEAR)) for image in raw])
    difference = np.abs(mini(tmp_path).images[:50, :, :, 0].astype(int) - pillow)
    assert difference.max() <= 1


def test_images_from_the_file_are_those_of_the_map(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    rows = np.random.default_rng(0).integers(0, 500, 200)
    mapped = mini(tmp_path)
    monkeypatch.setattr(cache, "_MAPPED_AT_MOST", 1000)  # as if it were large
    from_file = mini(tmp_path)
    assert (mapped.file, from_file.file) != (None, None)
    assert np.array_equal(from_file.read(rows), mapped.images[rows])
    assert np.array_equal(mapped.read(rows), mapped.images[rows])
    assert from_file.read(rows[:0]).shape == (0, 16, 16, 1)
    shutil.rmtree(tmp_path)
    with pytest.raises(UserError, match="is gone"):
        from_file.read(rows)


def test_fit_covers_and_crops_the_centre():
    image = torch.zeros(1, 1, 8, 24, dtype=torch.uint8)
    image[..., 8:16] = 200  # the middle third
    assert (fit(image, (8, 8), 1) == 200).all()
    assert fit(image, (4, 4), 3)[0, :, 0].tolist() == [[175, 200, 200, 175]] * 3  # antialiased: the edge takes in 1/8 of black
    assert fit(image.mT, (6, 12), 3).shape == (1, 3, 6, 12)


def test_grey_from_colour_is_luma():
    red = torch.zeros(1, 3, 4, 4, dtype=torch.uint8)
    red[:, 0] = 100
    assert fit(red, (4, 4), 1)[0, 0, 0, 0].item() in (29, 30)  # 0.299 * 100


def test_the_second_opening_reads_the_first_ones_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    first = mini(tmp_path)
    monkeypatch.setattr(FashionMNISTMini, "open", None)  # would fail if it were asked again
    second = mini(tmp_path)
    assert np.array_equal(first.images, second.images)
    assert np.array_equal(first.labels, second.labels)
    assert second.class_names[0] == "t-shirt"
    assert isinstance(second.images, np.memmap)
    assert not second.images.flags.writeable


def test_each_size_and_channel_count_has_its_own(tmp_path: Path):
    shapes = {
        mini(tmp_path, size, channels).images.shape[1:] for size, channels in (((16, 16), 1), ((8, 12), 1), ((16, 16), 3))
    }
    assert shapes == {(16, 16, 1), (8, 12, 1), (16, 16, 3)}
    assert len(list(tmp_path.iterdir())) == 3


@pytest.mark.parametrize(
    "damage", ["cut images", "flipped byte", "cut labels", "no meta", "broken meta", "other meta", "no images"]
)
def test_a_damaged_cache_is_noticed_and_rebuilt(tmp_path: Path, damage: str):
    expected = np.array(mini(tmp_path).images)
    (folder,) = tmp_path.iterdir()
    images, labels, meta = (folder / name for name in ("images.bin", "labels.bin", "meta.json"))
    content = bytearray(images.read_bytes())
    match damage:
        case "cut images":
            images.write_bytes(content[:-1])
        case "flipped byte":
            content[1000] ^= 1
            images.write_bytes(content)
        case "cut labels":
            labels.write_bytes(labels.read_bytes()[:-8])
        case "no meta":
            meta.unlink()
        case "broken meta":
            meta.write_text(meta.read_text()[:-10])
        case "other meta":
            meta.write_text(json.dumps({"shape": [1], "class_names": []}))
        case "no images":
            images.unlink()
    again = mini(tmp_path)
    assert np.array_equal(again.images, expected)
    assert list(tmp_path.iterdir()) == [folder]
    assert sorted(path.name for path in folder.iterdir()) == ["images.bin", "labels.bin", "meta.json"]


@pytest.mark.slow
def test_killed_half_way_it_leaves_no_broken_cache(tmp_path: Path, photos: Path):
    target = tmp_path / "cache"
    with subprocess.Popen(
        [sys.executable, "-c", BUILD, str(photos), str(target)], stdout=subprocess.PIPE, text=True
    ) as process:
        deadline = time.monotonic() + 60
        while not any(file.stat().st_size for file in target.glob(".*.tmp/images.bin")):
            assert process.poll() is None, "it was over before it could be killed"
            assert time.monotonic() < deadline
            time.sleep(0.005)
        os.kill(process.pid, signal.SIGKILL)
    assert all(path.name.endswith(".tmp") for path in target.iterdir())  # nothing that looks like a cache
    cached = cached_split(ImageFolder(), "train", photos, (16, 16), 3, target)
    assert cached is not None
    fresh = cached_split(ImageFolder(), "train", photos, (16, 16), 3, tmp_path / "fresh")
    assert fresh is not None
    assert np.array_equal(cached.images, fresh.images)
    # what the killed run left is swept up by a later conversion, a day on
    (leftover,) = target.glob(".*.tmp")
    os.utime(leftover, (0, 0))
    cached_split(ImageFolder(), "train", photos, (8, 8), 1, target)
    assert not leftover.exists()


@pytest.mark.slow
def test_two_runs_at_once_build_the_same_cache(tmp_path: Path, photos: Path):
    command = [sys.executable, "-c", BUILD, str(photos), str(tmp_path / "cache")]
    both = [subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) for _ in range(2)]
    answers = [process.communicate(timeout=120) for process in both]
    assert [process.returncode for process in both] == [0, 0], answers
    assert answers[0][0] == answers[1][0]
    assert len(list((tmp_path / "cache").iterdir())) == 1


def test_processes_that_start_together_read_the_images_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(FashionMNISTMini, "open", noting(tmp_path / "notes", FashionMNISTMini.open))
    at_once(lambda: mini(tmp_path / "cache"))
    assert (tmp_path / "notes").read_text() == "done\n"


def test_a_cache_folder_that_cannot_be_written_is_named(tmp_path: Path):
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(UserError, match=r"data\.cache_dir=.*cannot be written"):
        mini(tmp_path / "file" / "cache")


def test_a_new_version_of_the_conversion_makes_a_new_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    mini(tmp_path)
    monkeypatch.setattr(cache, "_VERSION", cache._VERSION + 1)
    mini(tmp_path)
    assert len(list(tmp_path.iterdir())) == 2
