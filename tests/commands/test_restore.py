"""restore.py: image files are filled, enlarged and sharpened."""

from pathlib import Path

import numpy as np
import pytest
import pyvips
import torch
import torch.nn.functional as F
from helpers import call
from PIL import Image

from unet_diffusion.errors import UserError
from unet_diffusion.generation.restoration import append_border
from unet_diffusion.restoration import Blur, gaussian_kernel


def picture(height: int = 40, width: int = 48) -> np.ndarray:
    """Smooth colours with sharp edges, uint8 (H, W, 3)."""
    rows, columns = np.mgrid[:height, :width]
    disc = (rows - 20) ** 2 + (columns - 24) ** 2 < 150
    image = np.stack([30 + rows * 2, 20 + columns * 2, 120 + 0 * rows], axis=-1)
    return np.where(disc[..., None], [230, 60, 40], image).astype(np.uint8)


def psnr(a: np.ndarray, b: np.ndarray) -> float:
    return float(10 * np.log10(255**2 / np.square(a.astype(float) - b).mean()))


def restored(tmp_path: Path, file: str, **arguments: object) -> np.ndarray:
    folder = call("restore", input=str(tmp_path / file), output=str(tmp_path / "out"), **arguments)
    return np.asarray(pyvips.Image.new_from_file(str(folder / file)).numpy())


def test_transparent_pixels_are_filled_and_others_kept(tmp_path: Path):
    image = picture()
    known = np.random.default_rng(0).random(image.shape[:2]) < 0.7
    Image.fromarray(np.dstack([image, 255 * known.astype(np.uint8)])).save(tmp_path / "a.png")
    filled = restored(tmp_path, "a.png", task="inpaint", steps=4)
    assert np.array_equal(filled[known], np.dstack([image, np.full(known.shape, 255)])[known])
    assert (filled[..., 3] == 255).all()
    assert psnr(filled[..., :3], image) > 25


def test_mask_is_that_of_the_upright_photograph(tmp_path: Path):
    stored = picture().astype(np.uint16) * 257
    tiff = pyvips.Image.new_from_array(stored, interpretation="rgb16")
    tiff.set_type(pyvips.GValue.gint_type, "orientation", 6)  # to be turned to the right
    tiff.write_to_file(str(tmp_path / "a.tif"))
    missing = np.zeros((48, 40), np.uint8)  # upright
    missing[30:, :10] = 255
    Image.fromarray(missing).save(tmp_path / "mask.png")
    mask = str(tmp_path / "mask.png")
    filled = restored(tmp_path, "a.tif", task="inpaint", mask=mask, steps=2)
    known = np.rot90(missing) == 0  # as stored
    assert filled.dtype == np.uint16
    assert np.array_equal(filled[known], stored[known])
    assert (filled[~known] != stored[~known]).mean() > 0.5


def test_enlarged_images_have_the_pixels_of_the_small_ones(tmp_path: Path):
    large = picture(80, 96)
    small = Image.fromarray(large).resize((48, 40), Image.Resampling.BICUBIC)
    alpha = Image.fromarray((255 * (np.arange(48) < 24)).astype(np.uint8)[None].repeat(40, 0))
    Image.merge("RGBA", [*small.split(), alpha]).save(tmp_path / "a.png")
    enlarged = restored(tmp_path, "a.png", task="enlarge", steps=4)
    assert enlarged.shape == (80, 96, 4)
    bicubic = np.asarray(small.resize((96, 80), Image.Resampling.BICUBIC))
    assert psnr(enlarged[..., :3], large) > psnr(bicubic, large) + 1
    again = Image.fromarray(enlarged[..., :3]).resize((48, 40), Image.Resampling.BICUBIC)
    inner = (slice(4, -4), slice(4, -4))
    difference = np.asarray(again, int)[inner] - np.asarray(small, int)[inner]
    assert np.quantile(np.abs(difference), 0.98) <= 1  # but for clipped values
    assert (enlarged[10, :40, 3] == 255).all()
    assert (enlarged[10, -40:, 3] == 0).all()


def test_blurred_photographs_are_sharpened(tmp_path: Path):
    image = picture()
    x = torch.from_numpy(image).permute(2, 0, 1)[None].float()
    border = F.pad(x, (8,) * 4, mode="replicate")
    blurred = Blur(gaussian_kernel(1.2)).forward(border)[..., 8:-8, 8:-8]
    pixels = blurred[0].permute(1, 2, 0).round().clamp(0, 255).numpy().astype(np.uint8)
    Image.fromarray(pixels).save(tmp_path / "a.png")
    kernel = 255 * gaussian_kernel(1.2) / gaussian_kernel(1.2).max()
    Image.fromarray(kernel.round().numpy().astype(np.uint8)).save(tmp_path / "kernel.png")
    settings = {"std": 1.2, "kernel": str(tmp_path / "kernel.png")}
    sharp = restored(tmp_path, "a.png", task="deblur", blur=settings, noise_std=1.0, steps=4)
    assert psnr(sharp, image) > psnr(pixels, image) + 2


def test_generator_completes_half_an_image_differently_for_each_seed(tmp_path: Path):
    half = np.zeros((16, 16), np.uint8)
    half[:8] = np.random.default_rng(0).integers(60, 200, (8, 16))
    Image.fromarray(half).save(tmp_path / "a.png")
    Image.fromarray(255 * (np.arange(16) >= 8).astype(np.uint8)[:, None].repeat(16, 1)).save(
        tmp_path / "mask.png"
    )
    results = []
    for seed in (0, 1):
        arguments = {"run": "pretrained", "task": "inpaint", "mask": str(tmp_path / "mask.png")}
        output = str(tmp_path / f"{seed}")
        call("restore", input=str(tmp_path / "a.png"), output=output, seed=seed, **arguments)
        results.append(np.asarray(Image.open(tmp_path / f"{seed}" / "a.png")))
        assert np.array_equal(results[-1][:8], half[:8])
    assert np.abs(results[0][8:].astype(int) - results[1][8:]).mean() > 2


def test_steps_are_written_as_an_animation(tmp_path: Path):
    Image.fromarray(picture()).save(tmp_path / "a.png")
    restored(tmp_path, "a.png", task="enlarge", steps=3, trajectory=True)
    with Image.open(tmp_path / "out" / "a-steps.gif") as animation:
        assert animation.n_frames == 3


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"task": "inpaint"}, "mask=null: .*no transparent pixels"),
        ({"task": "inpaint", "mask": "small.png"}, "mask=.*height and width are"),
        ({"task": "inpaint", "mask": "white.png"}, "all pixels are white"),
    ],
)
def test_unusable_masks_are_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, arguments: dict[str, str], message: str
):
    monkeypatch.chdir(tmp_path)
    Image.fromarray(picture()).save("a.png")
    Image.new("L", (10, 10)).save("small.png")
    Image.new("L", (48, 40), 255).save("white.png")
    with pytest.raises(UserError, match=message):
        restored(tmp_path, "a.png", **arguments)


def test_border_leads_from_the_last_pixels_to_the_first():
    x = torch.arange(6.0).expand(1, 1, 2, 6)
    longer = append_border(x, 4, -1)
    assert longer[0, 0, 0].tolist() == [0, 1, 2, 3, 4, 5, 4.75, 3.25, 1.75, 0.25]
    assert append_border(x, 10, -2).shape == (1, 1, 4, 6)
