"""scripts/denoise.py: denoises image files."""

import os
from pathlib import Path
from typing import Annotated

import torch
from pydantic import BaseModel, ConfigDict, Field, validate_call
from torch import Tensor

from unet_diffusion.config import STRICT
from unet_diffusion.data.image_folder import IMAGE_SUFFIXES
from unet_diffusion.diffusion.denoiser import Denoiser
from unet_diffusion.diffusion.schedules import Schedule
from unet_diffusion.generation.input_image import load_input_image
from unet_diffusion.hardware import select_device
from unet_diffusion.images import image_grid, save_png, to_uint8
from unet_diffusion.runs import Run, Weights, unique_name


class NoiseSettings(BaseModel):
    """The noise of the input images."""

    model_config = ConfigDict(**STRICT, extra="forbid")

    percent: Annotated[float, Field(ge=0, le=1)] | None = None
    """Noise level t; None: estimated from each image."""
    additive: bool = False
    """False: xt = alpha * x0 + sigma * eps; true: x0 + (sigma / alpha) * eps."""


@validate_call(config=STRICT)
def denoise(
    run: str,
    input: str,
    checkpoint: str = "best",
    weights: Weights = "auto",
    noise: NoiseSettings = NoiseSettings(),  # noqa: B008 - immutable in use
    device: str = "auto",
    output: str | None = None,
) -> Path:
    """Denoises an image file or a folder; see conf/denoise.yaml for the arguments.

    Returns:
        The output directory, with a PNG for each image and noisy-denoised pairs in pairs/.

    Raises:
        ValueError: an image cannot be read, or an argument does not fit the run.
    """
    opened = Run.open(run)
    torch_device = select_device(device)
    denoiser = opened.load_denoiser(checkpoint, weights, torch_device)
    size_multiple = getattr(denoiser.net, "size_multiple", None)
    files = _input_files(Path(input).expanduser())
    images = {file: load_input_image(file, opened.image_shape, size_multiple) for file in files}
    directory = opened.path / "denoised" / unique_name()
    if output is not None:
        directory = Path(output).expanduser()
        if any((directory / f"{file.stem}.png").resolve() == file.resolve() for file in files):
            raise ValueError(f"output={output}: would overwrite the input. Use another directory.")
    used = opened.checkpoint_path(checkpoint).name
    print(f"Checkpoint {used}, {opened.resolve_weights(weights)} weights.")
    for file, image in images.items():
        t = noise.percent
        if t is None:
            std = estimate_noise_std(image.crop(image.x0))
            t = noise_level_of(std, denoiser.schedule, noise.additive)
        denoised = denoise_image(denoiser, image.x0.to(torch_device), t, noise.additive).cpu()
        save_png(to_uint8(image.crop(denoised)[0]), directory / f"{file.stem}.png")
        pair = torch.cat([image.crop(image.x0), image.crop(denoised)])
        save_png(image_grid(pair, columns=2), directory / "pairs" / f"{file.stem}.png")
        source = "estimated" if noise.percent is None else "given"
        height, width = image.size
        path = os.path.relpath(directory / f"{file.stem}.png")
        print(f"{path}: noise.percent={t:.2f} ({source}), {width} x {height} pixels")
    return directory


@torch.inference_mode()
def denoise_image(denoiser: Denoiser, xt: Tensor, t: float, additive: bool) -> Tensor:
    """x0_hat (1, C, H, W) of a noisy image (1, C, H, W) with noise level t in [0, 1].

    Args:
        denoiser: on the device of `xt`, in eval mode.
        xt: noisy image in about [-1, 1].
        t: noise level.
        additive: False: xt = alpha(t) * x0 + sigma(t) * eps; True: xt = x0 + sigma / alpha * eps.
    """
    time = torch.full((1,), t, device=xt.device)
    x0_hat: Tensor = denoiser(xt * denoiser.schedule.alpha(time) if additive else xt, time)
    return x0_hat


def estimate_noise_std(image: Tensor) -> float:
    """Standard deviation of the white noise in an image (1, C, H, W).

    The median absolute value of the diagonal Haar coefficients at the finest scale, where noise
    dominates: Donoho and Johnstone 1994, "Ideal Spatial Adaptation by Wavelet Shrinkage", sec. 4.
    Noise that was clipped to black or white is underestimated.
    """
    x = image[..., : image.shape[-2] // 2 * 2, : image.shape[-1] // 2 * 2]
    diagonal = x[..., ::2, ::2] - x[..., ::2, 1::2] - x[..., 1::2, ::2] + x[..., 1::2, 1::2]
    gaussian_median = 0.6745
    return float((diagonal / 2).abs().median()) / gaussian_median if diagonal.numel() else 0.0


def noise_level_of(std: float, schedule: Schedule, additive: bool) -> float:
    """The t in [0, 1] at which the noise of an image has this standard deviation, by bisection."""
    low, high = 0.0, 1.0
    for _ in range(40):
        t = torch.tensor((low + high) / 2, dtype=torch.float64)
        noise_std = schedule.sigma(t) / (schedule.alpha(t) if additive else 1)
        low, high = (float(t), high) if float(noise_std) < std else (low, float(t))
    return low


def _input_files(path: Path) -> list[Path]:
    if not path.is_dir():
        return [path]
    files = sorted(file for file in path.iterdir() if file.suffix.lower() in IMAGE_SUFFIXES)
    if not files:
        raise ValueError(f"input={path}: no images found ({', '.join(IMAGE_SUFFIXES)}).")
    if len({file.stem for file in files}) < len(files):
        raise ValueError(f"input={path}: two images differ in their suffix only.")
    return files
