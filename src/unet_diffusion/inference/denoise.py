"""`scripts/denoise.py`: takes the noise out of a user's own images."""

import os
from pathlib import Path

import torch
from omegaconf import DictConfig
from torch import Tensor

from unet_diffusion.checks import fraction, number, one_of
from unet_diffusion.data.image_folder import ENDINGS
from unet_diffusion.diffusion.schedules import Schedule
from unet_diffusion.errors import UserError, first_line, printable
from unet_diffusion.images import grid, save_png, to_uint8
from unet_diffusion.inference.asked import Trained
from unet_diffusion.inference.photos import Photo, read_photo
from unet_diffusion.paths import named_path

_GAUSSIAN_MEDIAN = 0.6745


def denoise(cfg: DictConfig) -> Path:
    """Denoises what `conf/denoise.yaml` names; writes each image as PNG under its own name and returns their folder.

    Raises:
        UserError: the run or an image cannot be used, or an argument is out of its range.
    """
    try:
        percent = None if cfg.noise.percent is None else fraction("noise.percent", cfg.noise.percent)
        law = one_of("noise.law", cfg.noise.law, ("mixed", "added"))
    except ValueError as error:
        raise UserError(first_line(error)) from error
    files = _files(cfg)
    trained = Trained.load(cfg)
    output = named_path("output", cfg.output) if cfg.output else trained.run.path / "denoised"

    def read(file: Path) -> Photo:
        return read_photo(file, "input", trained.run.image_shape, trained.size_multiple)

    for file in files:
        read(file)  # one that cannot be read is said before anything is written; all at once might not fit into memory
    if any((output / f"{file.stem}.png").resolve() == file.resolve() for file in files):
        raise UserError(f"output={output} is where the input lies, which would be overwritten: name another folder")
    print(f"Denoising with checkpoint {trained.run.checkpoint(cfg.checkpoint).name}, {trained.weights} weights.")
    for file in files:
        photo = read(file)
        noisy = photo.x0[None]
        level = level_of(noise_in(photo.cropped(noisy)), trained.denoiser.schedule, law) if percent is None else percent
        clean = clean_image(trained, noisy, level, law)
        path = output / f"{file.stem}.png"
        try:
            _save(photo.cropped(clean)[0], path)
            pair = torch.cat([photo.cropped(noisy), photo.cropped(clean)])
            save_png(grid(pair, columns=2), output / "pairs" / f"{file.stem}.png")
        except OSError as error:
            raise UserError(f"output={output} cannot be written ({error}): name another folder") from error
        found = "estimated" if percent is None else "given"
        shown = printable(os.path.relpath(path))
        print(f"{shown}   noise.percent={level:.2f} ({found}), {photo.size[0]}x{photo.size[1]} pixels")
    return output


@torch.inference_mode()
def clean_image(trained: Trained, noisy: Tensor, level: float, law: str) -> Tensor:
    """The denoiser's guess (1, C, H, W) for an image with noise of that level.

    Args:
        trained: the run's denoiser.
        noisy: (1, C, H, W) in about [-1, 1].
        level: noise level t in [0, 1].
        law: `mixed`: the image is alpha(t) * x0 + sigma(t) * eps, as in training; `added`: noise lies on top of a whole image,
            as on a photograph: x0 + sigma(t) / alpha(t) * eps.
    """
    t = torch.tensor([level], device=trained.device)
    xt = noisy.to(trained.device)
    if law == "added":
        xt = xt * trained.denoiser.schedule.alpha(t)
    guess: Tensor = trained.denoiser(xt, t, trained.labels("none", 1))
    return guess.cpu()


def noise_in(noisy: Tensor) -> float:
    """Standard deviation of the white noise in an image (1, C, H, W), estimated from the image itself.

    The median size of the finest diagonal differences (Haar wavelet), where images have little and noise has all of its
    strength: Donoho and Johnstone 1994, "Ideal Spatial Adaptation by Wavelet Shrinkage", sec. 4. Noise that was clipped at
    black or white is underestimated.
    """
    height, width = noisy.shape[-2] // 2 * 2, noisy.shape[-1] // 2 * 2
    x = noisy[..., :height, :width]
    diagonal = (x[..., ::2, ::2] - x[..., ::2, 1::2] - x[..., 1::2, ::2] + x[..., 1::2, 1::2]) / 2
    return float(diagonal.abs().median()) / _GAUSSIAN_MEDIAN if diagonal.numel() else 0.0


def level_of(strength: float, schedule: Schedule, law: str) -> float:
    """The noise level at which the noise in the image has this standard deviation, under the mixing or the adding law."""
    number("strength", strength, low=0.0)
    low, high = 0.0, 1.0
    for _ in range(40):  # halving the range: both laws rise with the level
        middle = torch.tensor((low + high) / 2, dtype=torch.float64)
        there = schedule.sigma(middle) / (schedule.alpha(middle) if law == "added" else 1)
        low, high = (float(middle), high) if float(there) < strength else (low, float(middle))
    return low


def _files(cfg: DictConfig) -> list[Path]:
    if cfg.input is None:
        raise UserError("input= is needed: name an image file or a folder of images")
    path = named_path("input", cfg.input)
    if path.is_dir():
        files = sorted(file for file in path.iterdir() if file.suffix.lower() in ENDINGS and file.is_file())
        if not files:
            raise UserError(f"input={path} holds no images: it should have files ending in {', '.join(ENDINGS)}")
        if len({file.stem for file in files}) < len(files):
            raise UserError(f"input={path} holds images that differ in their ending alone, and would be written to one name")
        return files
    return [path]


def _save(image: Tensor, path: Path) -> None:
    picture = to_uint8(image)
    save_png(picture.expand(3, -1, -1), path)
