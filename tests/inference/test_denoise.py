import re
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers import SMALL, composed
from PIL import Image

from unet_diffusion.data.datamodule import Batch
from unet_diffusion.diffusion import CosineSchedule, DDPMSchedule, LinearSchedule, Schedule, image_noise
from unet_diffusion.images import to_float, to_uint8
from unet_diffusion.inference.denoise import denoise, level_of, noise_in
from unet_diffusion.runs import Run
from unet_diffusion.training.experiment import train


@pytest.fixture(scope="module")
def denoiser(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A blind network that has seen all levels for a few seconds."""
    path = tmp_path_factory.mktemp("runs") / "blind"
    typed = ("noise=uniform", "trainer.max_steps=150", "data.batch_size=64", "model.dense_bottleneck=false")
    train(composed(*SMALL, *typed), path, typed)
    return path


def save(image: torch.Tensor, path: Path) -> Path:
    path.parent.mkdir(exist_ok=True)
    Image.fromarray(to_uint8(image).squeeze(0).numpy()).save(path)
    return path


def mse(path: Path, clean: torch.Tensor) -> float:
    return float((to_float(torch.from_numpy(np.asarray(Image.open(path).convert("L")).copy())) - clean).square().mean())


@pytest.mark.parametrize("law", ["mixed", "added"])
def test_a_folder_of_noisy_clothes_becomes_cleaner(denoiser: Path, clothes: Batch, tmp_path: Path, law: str):
    eps, level = image_noise(0, range(8), (1, 16, 16)), 0.3
    noisy = 0.7 * clothes.x0[:8] + 0.3 * eps if law == "mixed" else clothes.x0[:8] + 0.3 / 0.7 * eps
    files = [save(noisy[i], tmp_path / "noisy" / f"{i}.png") for i in range(8)]
    typed = (
        f"run={denoiser}",
        f"input={tmp_path / 'noisy'}",
        f"noise.percent={level}",
        f"noise.law={law}",
        f"output={tmp_path}",
    )
    folder = denoise(composed(*typed, config="denoise"))
    before = np.mean([mse(file, clothes.x0[i, 0]) for i, file in enumerate(files)])
    after = np.mean([mse(folder / f"{i}.png", clothes.x0[i, 0]) for i in range(8)])
    assert after < 0.8 * before
    pair = np.asarray(Image.open(folder / "pairs" / "3.png"))
    assert np.array_equal(pair[2:66:4, 68:132:4, 0], np.asarray(Image.open(folder / "3.png"))[..., 0])


@pytest.mark.parametrize("size", [(21, 18), (16, 16), (40, 64)])
def test_an_image_keeps_its_size(denoiser: Path, tmp_path: Path, size: tuple[int, int]):
    Image.fromarray(np.random.default_rng(0).integers(0, 256, size, dtype=np.uint8)).save(tmp_path / "photo.png")
    folder = denoise(
        composed(f"run={denoiser}", f"input={tmp_path / 'photo.png'}", f"output={tmp_path / 'out'}", config="denoise")
    )
    assert Image.open(folder / "photo.png").size == size[::-1]


def test_padding_does_not_reach_into_the_image(denoiser: Path, tmp_path: Path):
    """The size that needs no padding is answered as the network answers it."""
    rng = np.random.default_rng(0)
    Image.fromarray(rng.integers(0, 256, (16, 24), dtype=np.uint8)).save(tmp_path / "photo.png")
    typed = (f"run={denoiser}", f"input={tmp_path / 'photo.png'}", "noise.percent=0.4", f"output={tmp_path / 'out'}")
    folder = denoise(composed(*typed, config="denoise"))
    run = Run.open(denoiser)
    x = to_float(torch.from_numpy(np.asarray(Image.open(tmp_path / "photo.png")).copy()))[None, None]
    with torch.inference_mode():
        expected = to_uint8(run.load_denoiser("best", torch.device("cpu"))(x, torch.tensor([0.4])))[0, 0].numpy()
    found = np.asarray(Image.open(folder / "photo.png"))[..., 0]
    assert np.abs(found.astype(int) - expected).max() <= 1


def test_a_strip_of_one_pixel_has_no_noise_to_measure():
    assert noise_in(torch.ones(1, 1, 9, 1)) == 0


@pytest.mark.parametrize("strength", [0.05, 0.2, 0.5])
def test_white_noise_on_a_smooth_image_is_measured(strength: float):
    torch.manual_seed(0)
    smooth = torch.linspace(-1, 1, 128).expand(1, 1, 128, 128)
    assert noise_in(smooth + strength * torch.randn(1, 1, 128, 128)) == pytest.approx(strength, rel=0.05)


@pytest.mark.parametrize("schedule", [LinearSchedule(), CosineSchedule(), DDPMSchedule()])
@pytest.mark.parametrize("level", [0.1, 0.5, 0.8])
def test_the_level_of_a_strength_is_the_schedules(schedule: Schedule, level: float):
    t = torch.tensor(level, dtype=torch.float64)
    alpha, sigma = float(schedule.alpha(t)), float(schedule.sigma(t))
    assert level_of(sigma, schedule, "mixed") == pytest.approx(level, abs=1e-6)
    assert level_of(sigma / alpha, schedule, "added") == pytest.approx(level, abs=1e-6)


def test_the_level_is_estimated_from_the_image(
    denoiser: Path, clothes: Batch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    torch.manual_seed(0)
    for i, level in enumerate((0.1, 0.4)):
        save((1 - level) * clothes.x0[i] + level * torch.randn(1, 16, 16), tmp_path / "in" / f"{level}.png")
    denoise(composed(f"run={denoiser}", f"input={tmp_path / 'in'}", f"output={tmp_path / 'out'}", config="denoise"))
    found = [float(word) for word in re.findall(r"noise.percent=([\d.]+) \(estimated\)", capsys.readouterr().out)]
    assert found == pytest.approx([0.1, 0.4], abs=0.12)


@pytest.mark.parametrize(
    ("typed", "said"),
    [
        ("", "input= is needed"),
        ("input=nowhere.png", "input=nowhere.png is no file"),
        ("input=EMPTY", "holds no images"),
        ("input=EMPTY noise.percent=30", "try noise.percent=0.3"),
        ("input=EMPTY noise.law=grain", "noise.law=grain must be one of mixed, added"),
        ("input=PHOTO output=HERE", "would be overwritten"),
        ("input=TEXT", "the image cannot be read"),
    ],
)
def test_bad_input_is_one_sentence(denoiser: Path, script: Callable, tmp_path: Path, typed: str, said: str):
    (tmp_path / "empty").mkdir()
    (tmp_path / "text.png").write_text("not an image")
    Image.new("L", (16, 16)).save(tmp_path / "photo.png")
    words = (
        typed.replace("EMPTY", str(tmp_path / "empty"))
        .replace("TEXT", str(tmp_path / "text.png"))
        .replace("HERE", str(tmp_path))
        .replace("PHOTO", str(tmp_path / "photo.png"))
        .split()
    )
    status, _, err = script("denoise", f"run={denoiser}", *words)
    assert status == 2
    (line,) = err.strip().splitlines()
    assert said in line
