"""scripts/denoise.py: denoises image files."""

import os
from pathlib import Path
from typing import Annotated

import numpy as np
import torch
import torch.nn.functional as F
from pydantic import BaseModel, ConfigDict, Field, validate_call
from torch import Tensor

from unet_diffusion.config import STRICT
from unet_diffusion.data.sources import IMAGE_SUFFIXES, read_image
from unet_diffusion.diffusion.denoiser import Denoiser
from unet_diffusion.diffusion.schedules import Schedule
from unet_diffusion.hardware import select_device
from unet_diffusion.images import image_grid, save_png, to_float, to_uint8
from unet_diffusion.runs import Run, Weights, unique_name


class NoiseSettings(BaseModel):
    """The noise of the input images; see conf/denoise.yaml."""

    model_config = ConfigDict(**STRICT, extra="forbid")

    percent: Annotated[float, Field(ge=0, le=1)] | None = None
    additive: bool = False


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

    If an image cannot be read, the others are denoised before the ValueError.

    Returns:
        The output directory, with a PNG for each image and noisy-denoised pairs in pairs/.
    """
    files = _input_files(Path(input).expanduser())
    opened = Run.open(run)
    denoiser = opened.load_denoiser(checkpoint, weights, select_device(device))
    directory = opened.output_dir / "denoised" / unique_name()
    if output is not None:
        directory = Path(output).expanduser()
        if existing := [f for f in files if (directory / f"{f.stem}.png").exists()]:
            raise ValueError(f"output={output}: {existing[0].stem}.png exists already.")
    if not getattr(denoiser.net, "size_multiple", None):
        height, width = opened.image_shape[1:]
        print(f"The network accepts {width} x {height} pixels only: edges of tiles can be visible.")
    errors = []
    for file in files:
        try:
            image = read_image(file)
            check_size(file, *image.shape[-2:])
        except ValueError as error:
            errors.append(str(error))
            continue
        xt = to_float(image)[None]
        t = noise.percent
        if t is None:
            t = noise_level_of(estimate_noise_std(xt), denoiser.schedule, noise.additive)
        denoised = denoise_image(denoiser, xt, t, noise.additive, opened.image_shape)
        target = directory / f"{file.stem}.png"
        save_png(to_uint8(denoised[0]), target)
        pair = image_grid(torch.cat([xt, denoised]), columns=2)
        save_png(pair, directory / "pairs" / target.name)
        source = "estimated" if noise.percent is None else "given"
        path, size = os.path.relpath(target), f"{xt.shape[-1]} x {xt.shape[-2]}"
        print(f"{path}: noise.percent={t:.2f} ({source}), {size} pixels")
    if errors:
        raise ValueError(f"{len(errors)} of {len(files)} images skipped: {' '.join(errors)}")
    return directory


def check_size(file: Path, height: int, width: int) -> None:
    """Checks that an image is not too large for the memory."""
    if height * width > (limit := 1 << 20):
        raise ValueError(f"{file}: {width} x {height} pixels, expected at most {limit:,}.")


@torch.inference_mode()
def denoise_image(
    denoiser: Denoiser, xt: Tensor, t: float, additive: bool, image_shape: tuple[int, int, int]
) -> Tensor:
    """Denoises an image xt (1, C, H, W) of any size, in about [-1, 1]; x0_hat is on the CPU.

    A grey network is applied to each colour channel. A network that accepts its training size only
    denoises tiles of that size. `image_shape` is (C, H, W) of the training images; with `additive`
    noise, xt = x0 + sigma(t) / alpha(t) * eps instead of alpha(t) * x0 + sigma(t) * eps.
    """
    channels, height, width = xt.shape[1:]
    multiple = getattr(denoiser.net, "size_multiple", None)
    unit = (multiple, multiple) if multiple else image_shape[1:]
    padding = (0, -width % unit[1], 0, -height % unit[0])
    x = xt.transpose(0, 1) if image_shape[0] == 1 else xt.expand(-1, 3, -1, -1)
    x = F.pad(x, padding, mode="replicate")
    tile = tuple(x.shape[-2:]) if multiple else unit
    tiles = x.unfold(2, tile[0], tile[0]).unfold(3, tile[1], tile[1]).permute(0, 2, 3, 1, 4, 5)
    batch = tiles.flatten(0, 2).to(next(denoiser.parameters()).device)  # (B * rows * columns, ...)
    time = torch.full((len(batch),), t, device=batch.device)
    scale = denoiser.schedule.alpha(time[:1]) if additive else 1.0
    x0_hat: Tensor = denoiser(scale * batch, time).cpu().reshape(tiles.shape)
    x0_hat = x0_hat.permute(0, 3, 1, 4, 2, 5).reshape(x.shape)[..., :height, :width]
    if image_shape[0] == 1:
        return x0_hat.transpose(0, 1)
    return x0_hat if channels == 3 else x0_hat.mean(dim=1, keepdim=True)


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
    """The t in [0, 1] at which the noise of an image has this standard deviation."""
    t = torch.linspace(0, 1, 10_001, dtype=torch.float64)
    noise_std = schedule.sigma(t) / (schedule.alpha(t) if additive else 1)
    return float(np.interp(std, noise_std.numpy(), t.numpy()))


def _input_files(path: Path) -> list[Path]:
    if not path.exists():
        raise ValueError(f"input={path}: no such file or directory.")
    if not path.is_dir():
        return [path]
    files = sorted(file for file in path.iterdir() if file.suffix.lower() in IMAGE_SUFFIXES)
    if not files:
        raise ValueError(f"input={path}: no images found ({', '.join(IMAGE_SUFFIXES)}).")
    if len({file.stem for file in files}) < len(files):
        raise ValueError(f"input={path}: two images differ in their suffix only.")
    return files
