"""scripts/denoise.py: denoises photographs of any size."""

from pathlib import Path
from typing import Any

import numpy as np
import torch
from tqdm import tqdm

from unet_diffusion.commands.photos import NoiseStd, PhotoArguments, process_photos
from unet_diffusion.data.photo_files import Photo
from unet_diffusion.diffusion.denoiser import Denoiser
from unet_diffusion.errors import UserError
from unet_diffusion.experiment.schema import Fraction, Schema
from unet_diffusion.generation.photos import (
    count_tiles,
    denoise_pages,
    highest_noise_level,
    photo_noise_std,
)
from unet_diffusion.hardware import select_device
from unet_diffusion.runs.run import Run


class ImageNoise(Schema):
    """The noise of the input images."""

    std: NoiseStd | None
    percent: Fraction | None
    additive: bool


class Arguments(PhotoArguments):
    """The keys of conf/denoise.yaml."""

    noise: ImageNoise
    strength: Fraction


def denoise(arguments: Arguments) -> Path:
    """Denoises an image file or the images of a folder, and returns the output directory."""
    noise = arguments.noise
    if noise.std is not None and noise.percent is not None:
        raise UserError("noise.std and noise.percent: set one of them.")
    run = Run.open(arguments.run)
    device = select_device(arguments.device)
    denoiser = run.load_denoiser(arguments.checkpoint, arguments.weights, device)
    shape = run.config.image_shape

    def process(photo: Photo, _: Path, progress: "tqdm[Any]") -> tuple[list[np.ndarray], str]:
        t, text = noise_level(photo, denoiser, run, noise)
        progress.unit = " tiles"
        progress.total = count_tiles(photo, denoiser, shape)
        pages = denoise_pages(
            photo,
            denoiser,
            t,
            shape,
            additive=noise.additive,
            strength=arguments.strength,
            on_tile=progress.update,
        )
        return pages, text

    return process_photos(arguments, run, "denoised", process)


def noise_level(photo: Photo, denoiser: Denoiser, run: Run, noise: ImageNoise) -> tuple[float, str]:
    """The t of a photograph, and a text that says where it is from."""
    if noise.percent is not None:
        return noise.percent, f"noise.percent={noise.percent:g} (given)"
    std = photo_noise_std(photo) if noise.std is None else noise.std
    t = float(denoiser.schedule.time_of_noise(torch.tensor(std / 127.5), noise.additive))
    text = f"noise.std={std:.1f} ({'estimated' if noise.std is None else 'given'})"
    highest = highest_noise_level(run.config)
    if t > highest:
        return highest, f"{text}, more than in training (noise.percent={highest:g})"
    return t, text
