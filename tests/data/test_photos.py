"""Photographs: tiles in the cache, splits by photograph, random crops of tiles."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from unet_diffusion.data.cache import Tiling, cut_tiles
from unet_diffusion.data.datamodule import ImageDataModule
from unet_diffusion.data.sources import PhotoFolder
from unet_diffusion.errors import UserError
from unet_diffusion.images import to_uint8


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """30 photographs of different sizes; red is the number, green the row, blue the column."""
    path = tmp_path_factory.mktemp("photos")
    (path / "more").mkdir()
    for i in range(30):
        pixels = np.zeros((40 + i % 3 * 20, 70, 3), np.uint8)
        pixels[..., 0] = i
        pixels[..., 1] = np.arange(len(pixels))[:, None]
        pixels[..., 2] = np.arange(70)
        Image.fromarray(pixels).save(path / ("more" if i % 2 else ".") / f"{i}.png")
    return path


def opened(folder: Path, tmp_path: Path, **changes: Any) -> ImageDataModule:
    arguments = {"image_size": 16, "channels": 3, "batch_size": 4, "tile_size": 32, "scale": 1.0}
    arguments |= {"cache_dir": str(tmp_path), "root": str(folder), "val_fraction": 0.2}
    datamodule = ImageDataModule(PhotoFolder(), **arguments | changes)
    datamodule.setup()
    return datamodule


def test_photographs_are_scaled_and_covered_with_tiles():
    for size, tiling, count in (
        ((64, 128), Tiling(0.5, 1000), 2),  # scaled to 32 x 64
        ((64, 128), Tiling(1.0, 64), 2),  # by max_side
        ((40, 40), Tiling(0.5, 1000), 1),  # less, to the size of a tile
    ):
        photo = torch.zeros(1, 3, *size, dtype=torch.uint8)
        assert len(cut_tiles(photo, (32, 32), 3, tiling)) == count
    photo = torch.arange(50 * 70).remainder(251).to(torch.uint8).reshape(1, 1, 50, 70)
    tiles = cut_tiles(photo, (32, 32), 1, Tiling(1.0, 1000))
    assert tiles.shape == (2 * 3, 1, 32, 32)
    assert torch.equal(tiles[0], photo[0, :, :32, :32])
    assert torch.equal(tiles[-1], photo[0, :, 18:, 38:])


def test_a_photograph_smaller_than_a_tile_is_named(tmp_path: Path, folder: Path):
    with pytest.raises(UserError, match=r"10 of 30 .*0\.png: 70 x 40 pixels, a tile \(data.tile"):
        opened(folder, tmp_path, tile_size=50)


def test_all_tiles_of_a_photograph_are_in_one_split(tmp_path: Path, folder: Path):
    splits = opened(folder, tmp_path).splits
    numbers = {
        name: set(split.uint8(slice(None))[:, 0].flatten().tolist())
        for name, split in splits.items()
    }
    assert sorted(n for each in numbers.values() for n in each) == list(range(30))
    assert sum(len(split) for split in splits.values()) == 10 * (2 + 2 + 3) * 3
    assert len({len(each) for each in numbers.values()}) > 1


def test_crops_are_parts_of_tiles_that_depend_on_seed_and_epoch(tmp_path: Path, folder: Path):
    train = opened(folder, tmp_path, flip=True, transpose=True).splits["train"]
    seen = []
    for seed, epoch in ((0, 0), (0, 1), (1, 0), (0, 0)):
        train.start_epoch(seed, epoch)
        seen.append(to_uint8(train.batch(range(40)).x0))
    assert torch.equal(seen[0], seen[3])
    assert not torch.equal(seen[0], seen[1])
    assert not torch.equal(seen[0], seen[2])
    rows, columns = seen[0][:, 1].int(), seen[0][:, 2].int()
    is_transposed = rows[:, 0, 0] == rows[:, 1, 0]  # rows of the photograph are columns
    assert 5 < is_transposed.sum() < 35
    upright = torch.where(is_transposed[:, None, None], rows.transpose(1, 2), rows)
    assert (upright.diff(dim=1).abs() == 1).all()
    assert (upright.diff(dim=2) == 0).all()
    corners = {(int(r.min()), int(c.min())) for r, c in zip(rows, columns, strict=True)}
    assert len(corners) > 30
