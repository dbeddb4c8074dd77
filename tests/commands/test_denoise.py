"""denoise.py: image files, and the estimate of their noise level."""

import contextlib
import re
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers import SMALL, call, composed
from PIL import Image

from unet_diffusion.commands.train import train
from unet_diffusion.data.dataset import Batch
from unet_diffusion.diffusion import seeded_noise
from unet_diffusion.diffusion.noise import estimate_noise_std
from unet_diffusion.generation.denoising import map_tiles
from unet_diffusion.images import save_png, to_float, to_uint8
from unet_diffusion.runs import Run


@pytest.fixture(scope="module")
def run_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run with all noise levels; its network accepts images of other sizes."""
    path = tmp_path_factory.mktemp("runs") / "all_noise_levels"
    overrides = ("noise=uniform", "trainer.max_steps=70", "model.dense_bottleneck=false")
    limits = ("+trainer.limit_val_batches=1", "+trainer.limit_test_batches=1", "logger=csv")
    train(composed(*SMALL, *overrides, *limits, f"run_dir={path}"))
    return path


def save(image: torch.Tensor, path: Path) -> Path:
    save_png(to_uint8(image), path)
    return path


def load(path: Path) -> torch.Tensor:
    return to_float(torch.from_numpy(np.array(Image.open(path).convert("L"))))


@pytest.mark.parametrize("additive", [False, True])
def test_noisy_images_are_denoised(run_dir: Path, clothes: Batch, tmp_path: Path, additive: bool):
    x0, eps = clothes.x0[:8], seeded_noise(0, range(8), (1, 16, 16))
    noisy = x0 + 0.3 / 0.7 * eps if additive else 0.7 * x0 + 0.3 * eps
    files = [save(noisy[i], tmp_path / "noisy" / f"{i}.png") for i in range(8)]
    directory = call(
        "denoise",
        run=str(run_dir),
        input=str(tmp_path / "noisy"),
        noise={"percent": 0.3, "additive": additive},
        output=str(tmp_path),
    )
    before = np.mean([(load(file) - x0[i, 0]).square().mean() for i, file in enumerate(files)])
    denoised = [load(directory / f"{i}.png") for i in range(8)]
    after = np.mean([(image - x0[i, 0]).square().mean() for i, image in enumerate(denoised)])
    assert after < 0.8 * before


@pytest.mark.parametrize("size", [(21, 18), (16, 24)])
def test_images_keep_their_size_in_new_directories(run_dir: Path, tmp_path: Path, size: tuple):
    pixels = np.random.default_rng(0).integers(0, 256, size, dtype=np.uint8)
    Image.fromarray(pixels).save(tmp_path / "photo.png")
    arguments = {"run": str(run_dir), "input": str(tmp_path / "photo.png")}
    noise = {"percent": 0.4, "additive": False}
    first, second = (call("denoise", **arguments, noise=noise) for _ in range(2))
    assert first != second
    assert first.parent == run_dir.resolve() / "denoised"
    x0_hat = load(first / "photo.png")
    assert x0_hat.shape == size
    if size == (16, 24):  # no padding
        xt = to_float(torch.from_numpy(pixels))[None, None]
        with torch.inference_mode():
            expected = Run.open(run_dir).load_denoiser()(xt, torch.tensor([0.4])).clamp(-1, 1)
        assert (x0_hat - expected[0, 0]).abs().max() < 1.5 / 127.5


def test_broken_image_is_named_and_the_others_are_denoised(run_dir: Path, tmp_path: Path):
    Image.new("L", (16, 16)).save(tmp_path / "a.png")
    (tmp_path / "b.png").write_text("not an image")
    output = str(tmp_path / "out")
    with pytest.raises(ValueError, match=r"1 of 2 images skipped: Cannot read .*b\.png"):
        call("denoise", run=str(run_dir), input=str(tmp_path), output=output)
    assert (tmp_path / "out" / "a.png").exists()


def test_lesson_network_denoises_tiles_and_keeps_size_and_colour(short_run: Path, tmp_path: Path):
    pixels = np.random.default_rng(0).integers(0, 256, (40, 35, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(tmp_path / "photo.png")
    paths = {"input": str(tmp_path / "photo.png"), "output": str(tmp_path / "out")}
    noise = {"percent": 0.5, "additive": False}
    directory = call("denoise", run=str(short_run), noise=noise, **paths)
    result = np.array(Image.open(directory / "photo.png"))
    assert result.shape == (40, 35, 3)
    tile = to_float(torch.from_numpy(pixels[:16, :16, 2].copy()))[None, None]
    with torch.inference_mode():
        x0_hat = Run.open(short_run).load_denoiser()(tile, torch.tensor([0.5]))
    expected = to_uint8(x0_hat)[0, 0].numpy().astype(int)  # alone in its first 12 rows and columns
    assert np.abs(result[:12, :12, 2] - expected[:12, :12]).max() <= 1


@pytest.mark.parametrize("size", [(50, 50), (33, 90), (32, 20), (7, 100)])
def test_tiles_are_blended_to_the_result_of_the_whole_image(size: tuple[int, int]):
    image = torch.rand(3, *size)
    kernel = torch.rand(1, 1, 5, 5)

    def blur(tile: torch.Tensor) -> torch.Tensor:
        return torch.nn.functional.conv2d(tile[:, None], kernel, padding=2)[:, 0]

    starts, rows = zip(*map_tiles(blur, image, (32, 32), overlap=8), strict=True)
    assert list(starts) == np.cumsum([0, *(each.shape[1] for each in rows[:-1])]).tolist()
    torch.testing.assert_close(torch.cat(rows, dim=1), blur(image))


def test_format_names_depth_and_alpha_are_kept_unless_changed(run_dir: Path, tmp_path: Path):
    pixels = np.random.default_rng(0).integers(0, 256, (16, 16, 4), dtype=np.uint8)
    photo = Image.fromarray(pixels)
    photo.save(tmp_path / "a.b.tif")
    arguments = {"run": str(run_dir), "input": str(tmp_path / "a.b.tif"), "noise": {"std": 25}}
    kept = Image.open(call("denoise", **arguments) / "a.b.tif")
    assert (kept.format, kept.mode) == ("TIFF", "RGBA")
    assert np.array_equal(np.array(kept)[..., 3], pixels[..., 3])
    unchanged = Image.open(call("denoise", **arguments, strength=0.0, format="png") / "a.b.png")
    assert np.array_equal(np.array(unchanged), pixels)


@pytest.mark.parametrize("std", [0.05, 0.2, 0.5])
def test_the_std_of_white_noise_on_a_smooth_image_is_estimated(std: float):
    torch.manual_seed(0)
    smooth = torch.linspace(-1, 1, 128).expand(1, 1, 128, 128)
    noisy = smooth + std * torch.randn(1, 1, 128, 128)
    assert estimate_noise_std(noisy).item() == pytest.approx(std, rel=0.05)


def test_the_noise_level_is_estimated_for_each_image(
    run_dir: Path, clothes: Batch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    eps = seeded_noise(0, range(2), (1, 16, 16))
    for i, t in enumerate((0.1, 0.4)):
        save((1 - t) * clothes.x0[i] + t * eps[i], tmp_path / "in" / f"{t}.png")
    call("denoise", run=str(run_dir), input=str(tmp_path / "in"))
    levels = re.findall(r"noise.std=([\d.]+) \(estimated\)", capsys.readouterr().out)
    assert [float(level) / 127.5 for level in levels] == pytest.approx([0.1, 0.4], abs=0.15)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"input": "nowhere.png"}, "nowhere.png"),
        ({"input": "empty"}, "input=.*empty: no images found"),
        ({"input": "photo.png", "noise": {"percent": 30}}, "noise.percent"),
        ({"input": "photo.png", "noise": {"law": "grain"}}, "noise.law"),
        ({"input": "photo.png", "noise": {"percent": 0.3, "std": 5}}, "set one of them"),
        ({"input": "photo.png", "strength": 1.5}, "strength"),
        ({"input": "photo.png", "output": "."}, "photo.png exists"),
    ],
)
def test_invalid_arguments_raise(run_dir: Path, tmp_path: Path, arguments: dict, message: str):
    (tmp_path / "empty").mkdir()
    Image.new("L", (16, 16)).save(tmp_path / "photo.png")
    with contextlib.chdir(tmp_path), pytest.raises(ValueError, match=message):
        call("denoise", run=str(run_dir), **arguments)
