"""sample.py: what it writes, and each of its arguments."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from helpers import call
from PIL import Image, ImageSequence

from unet_diffusion.diffusion import seeded_noise
from unet_diffusion.generation.sampling import sample_images
from unet_diffusion.images import to_uint8
from unet_diffusion.runs import Run
from unet_diffusion.samplers import DDIMSampler

Sample = Callable[..., tuple[Path, np.ndarray]]
TILE = 66  # a 16 x 16 image enlarged to 64 pixels, and 2 pixels between images


@pytest.fixture
def sampled(tmp_path: Path) -> Sample:
    """Calls `sample`; returns the output directory and the images (N, H, W, C)."""

    def sample(run: Path, num_samples: int = 4, **arguments: Any) -> tuple[Path, np.ndarray]:
        arguments = {"dtype": "float32", "output": str(tmp_path / "out")} | arguments
        directory = call("sample", run=str(run), num_samples=num_samples, **arguments)
        return directory, np.load(directory / "samples.npz")["arr_0"].astype(int)

    return sample


def tile(grid: np.ndarray, row: int, column: int) -> np.ndarray:
    """The 16 x 16 image in a row and column of a grid."""
    y, x = TILE * row + 2, TILE * column + 2
    return grid[y : y + 64 : 4, x : x + 64 : 4]


def grey(path: Path) -> np.ndarray:
    return np.asarray(Image.open(path).convert("L"))


def test_npz_and_grid_contain_the_samples_of_the_seed(short_run: Path, sampled: Sample):
    sampler = {"clip": "static"}
    directory, images = sampled(short_run, 10, columns=2, seed=5, sampler=sampler)
    assert images.shape == (10, 16, 16, 1)
    run = Run.open(short_run)
    eps = seeded_noise(5, range(10), run.config.image_shape)
    expected = sample_images(run.load_denoiser(), DDIMSampler(1, clip="static"), eps).images
    assert np.abs(images - to_uint8(expected).permute(0, 2, 3, 1).numpy().astype(int)).max() <= 1
    grid = grey(directory / "grid.png")
    assert grid.shape == (2 * TILE + 2, 2 * TILE + 2)  # the other six are in the archive only
    assert np.array_equal(tile(grid, 0, 1), images[1, :, :, 0])
    settings = json.loads((directory / "settings.json").read_text())
    assert (settings["seed"], settings["nfe"], settings["weights"]) == (5, 1, "raw")
    assert settings["sampler"] == (
        "DDIMSampler(steps=1, time_grid='uniform', clip='static', eta=0.0)"
    )


def test_bf16_images_are_those_of_fp32_up_to_rounding(generator_run: Path, sampled: Sample):
    _, fp32 = sampled(generator_run, 20)
    directory, bf16 = sampled(generator_run, 20, dtype="bfloat16")
    assert json.loads((directory / "settings.json").read_text())["dtype"] == "bfloat16"
    assert 0 < np.abs(bf16 - fp32).mean() < 3  # of 255


def test_label_name_is_its_index_and_guidance_changes_images(generator_run: Path, sampled: Sample):
    _, sneaker = sampled(generator_run, label="sneaker")
    assert np.array_equal(sneaker, sampled(generator_run, label=7)[1])
    assert (sneaker != sampled(generator_run, label="bag")[1]).any()
    directory, guided = sampled(generator_run, label="sneaker", guidance_scale=3)
    assert (sneaker != guided).any()
    assert json.loads((directory / "settings.json").read_text())["nfe"] == 8  # two per step


def test_grid_has_one_row_per_class(generator_run: Path, sampled: Sample):
    directory, images = sampled(generator_run, 25, columns=3)
    assert np.load(directory / "samples.npz")["arr_1"].tolist() == [i % 10 for i in range(25)]
    grid = grey(directory / "grid.png")
    assert grid.shape == (10 * TILE + 2, 2 * TILE + 2)  # 25 images: two of every class
    for row, column, image in ((0, 1, 10), (9, 0, 9)):
        assert np.array_equal(tile(grid, row, column), images[image, :, :, 0])


@pytest.mark.parametrize("suffix", ["gif", "webp"])
def test_trajectory_and_animation_end_at_images(generator_run: Path, sampled: Sample, suffix: str):
    directory, images = sampled(generator_run, 20, columns=2, trajectory=True, animation=suffix)
    strip = grey(directory / "trajectory.png")
    assert strip.shape == (8 * TILE + 2, 5 * TILE + 2)  # eight images, noise and four steps
    assert np.array_equal(tile(strip, 0, 4), images[0, :, :, 0])
    noise = to_uint8(seeded_noise(0, range(1), (1, 16, 16)))[0, 0].numpy().astype(int)
    assert np.abs(tile(strip, 0, 0).astype(int) - noise).max() <= 1
    frames = list(ImageSequence.Iterator(Image.open(directory / f"trajectory.{suffix}")))
    assert len(frames) == 5
    last = np.asarray(frames[-1].convert("L")).astype(int)
    assert np.abs(last - grey(directory / "grid.png")).mean() < 4  # lossy formats


def test_interpolation_ends_at_the_images_of_both_seeds(generator_run: Path, sampled: Sample):
    _, images = sampled(generator_run, 2, to_seed=1, columns=4, label="none")
    _, start = sampled(generator_run, 2, label="none")
    _, end = sampled(generator_run, 2, seed=1, label="none")
    assert len(images) == 8
    for row in (0, 1):
        assert np.abs(images[4 * row] - start[row]).max() <= 1
        assert np.abs(images[4 * row + 3] - end[row]).max() <= 1
        assert (images[4 * row + 1] != images[4 * row + 2]).any()


def test_init_image_keeps_about_its_size_and_at_low_strength_its_content(
    generator_run: Path, sampled: Sample, tmp_path: Path
):
    Image.new("L", (2000, 1000)).save(tmp_path / "large.png")
    with pytest.raises(ValueError, match="2000 x 1000 pixels, expected at most 1,048,576"):
        sampled(generator_run, init_image=str(tmp_path / "large.png"))
    photo = np.tile(np.linspace(0, 255, 21, dtype=np.uint8), (24, 1))
    Image.fromarray(photo).convert("RGB").save(tmp_path / "photo.png")
    differences = []
    for strength in (0.02, 1):
        arguments = {"init_image": str(tmp_path / "photo.png"), "strength": strength}
        directory, images = sampled(generator_run, 2, guidance_scale=2, **arguments)
        settings = json.loads((directory / "settings.json").read_text())
        assert (settings["strength"], settings["label"]) == (strength, "none")
        assert settings["nfe"] == 4  # no guidance without a label
        assert images.shape == (2, 24, 20, 1)  # multiples of 4: patches and one downsampling
        differences.append(np.abs(images[..., 0] - photo[:, :20]).mean())
    assert differences[0] < 15
    assert differences[1] > 2 * differences[0]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"label": "shoe"}, "label=shoe: expected all, none, 0 to 9, or one of t-shirt, trouser"),
        ({"guidance_scale": 0.5}, "guidance_scale=0.5: expected at least 1"),
        ({"sampler": {"clip": "soft"}}, "sampler.clip=soft: should be 'none', 'static'"),
        ({"strength": 0.5}, "strength=0.5: requires init_image"),
        ({"strength": 60}, "strength"),
        ({"init_image": "nowhere.png"}, "nowhere.png"),
        ({"weights": "best"}, "weights"),
        ({"columns": 1, "to_seed": 1}, "columns"),
    ],
)
def test_invalid_arguments_raise(
    generator_run: Path, sampled: Sample, arguments: dict, message: str
):
    with pytest.raises(ValueError, match=message):
        sampled(generator_run, **arguments)
