"""scripts/sample.py: images from a trained run, as a grid and an archive."""

import os
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
import torch
from pydantic import Field, validate_call
from torch import Tensor

from unet_diffusion.config import STRICT
from unet_diffusion.data.cache import resize
from unet_diffusion.data.image_folder import read_image
from unet_diffusion.diffusion.noise import seeded_noise, slerp
from unet_diffusion.generation.denoise import MAX_PIXELS
from unet_diffusion.generation.pipeline import Pipeline, sample_images
from unet_diffusion.images import (
    image_grid,
    save_animation,
    save_png,
    to_float,
    to_uint8,
    trajectory_strip,
)
from unet_diffusion.runs import Run, Weights, unique_name, write_json


@validate_call(config=STRICT)
def sample(
    run: str,
    checkpoint: str = "best",
    weights: Weights = "auto",
    num_samples: Annotated[int, Field(ge=1)] = 64,
    seed: Annotated[int, Field(ge=0)] = 0,
    batch_size: Literal["auto"] | Annotated[int, Field(ge=1)] = "auto",
    label: str | int = "auto",
    guidance_scale: float | None = None,
    init_image: str | None = None,
    strength: Annotated[float, Field(gt=0, le=1)] | None = None,
    to_seed: Annotated[int, Field(ge=0)] | None = None,
    trajectory: bool = False,
    animation: Literal["gif", "webp"] | None = None,
    columns: Annotated[int, Field(ge=2, le=1000)] = 8,
    device: str = "auto",
    output: str | None = None,
    sampler: dict[str, Any] | None = None,
) -> Path:
    """Generates images and writes them; see conf/sample.yaml for the arguments.

    Returns:
        The output directory, with grid.png and samples.npz (uint8, N x H x W x C, in arr_0 and the
        labels in arr_1: the format of the ADM evaluation suite, Dhariwal and Nichol 2021).

    Raises:
        ValueError: an argument is invalid or does not fit the run.
    """
    if strength is not None and init_image is None:
        raise ValueError(f"strength={strength}: requires init_image.")
    pipeline = Pipeline.load(
        Run.open(run),
        checkpoint=checkpoint,
        weights=weights,
        device=device,
        sampler=sampler,
        guidance_scale=guidance_scale,
    )
    directory = pipeline.run.path / "samples" / unique_name()
    if output is not None:
        directory = Path(output).expanduser()

    shape = pipeline.run.image_shape
    x0 = None
    if init_image is not None:
        size_multiple = getattr(pipeline.denoiser.net, "size_multiple", None)
        x0 = load_init_image(Path(init_image).expanduser(), shape, size_multiple)
        shape = (x0.shape[1], x0.shape[2], x0.shape[3])
    labels = pipeline.labels(label, num_samples)
    eps = seeded_noise(seed, range(num_samples), shape)
    if to_seed is not None:
        rows = min(num_samples, columns)
        end = seeded_noise(to_seed, range(rows), shape)
        eps = interpolate(eps[:rows], end, columns)
        labels = None if labels is None else labels[:rows].repeat_interleave(columns)

    generated = sample_images(
        pipeline.cfg_denoiser,
        pipeline.sampler,
        eps,
        labels,
        seed=seed,
        batch_size=None if batch_size == "auto" else batch_size,
        device=pipeline.device,
        x0=None if x0 is None else x0.expand(len(eps), -1, -1, -1),
        strength=0.6 if strength is None else strength,
        return_trajectory=trajectory or animation is not None,
    )

    by_class = labels is not None and to_seed is None

    def grid(images: Tensor) -> Tensor:
        classes = sorted(set(labels.tolist())) if by_class and labels is not None else []
        if len(classes) > 1:
            rows = [images[labels == label] for label in classes]
            shown = min(columns, *(len(row) for row in rows))
            return image_grid(torch.cat([row[:shown] for row in rows]), shown)
        return image_grid(images[: columns * columns], columns)

    save_png(grid(generated.images), directory / "grid.png")
    arrays = {"arr_0": to_uint8(generated.images).permute(0, 2, 3, 1).numpy()}
    if labels is not None:
        arrays["arr_1"] = labels.numpy()
    np.savez_compressed(directory / "samples.npz", **arrays)  # type: ignore[arg-type]
    if trajectory:
        save_png(trajectory_strip(generated.trajectory, rows=8), directory / "trajectory.png")
    if animation:
        frames = [grid(images) for images in generated.trajectory]
        save_animation(frames, directory / f"trajectory.{animation}")
    settings = {
        "run": pipeline.run.path.name,
        "checkpoint": pipeline.checkpoint.name,
        "weights": pipeline.weights,
        "sampler": pipeline.sampler_name,
        "nfe": generated.nfe,
        "guidance_scale": pipeline.cfg_denoiser.guidance_scale,
        "seed": seed,
        "label": label,
    }
    write_json(directory / "settings.json", settings)
    described = ", ".join(f"{key} {value}" for key, value in settings.items())
    print(f"{len(eps)} images: {described}.")
    print(f"Saved to {os.path.relpath(directory)}: grid.png, samples.npz, settings.json.")
    return directory


def interpolate(start: Tensor, end: Tensor, columns: int) -> Tensor:
    """Noise (N * columns, C, H, W): one row per image, from its noise in `start` to `end`."""
    weights = torch.linspace(0, 1, columns).tolist()
    return torch.stack([slerp(start, end, weight) for weight in weights], dim=1).flatten(0, 1)


def load_init_image(
    path: Path, image_shape: tuple[int, int, int], size_multiple: int | None
) -> Tensor:
    """Reads an image file as (1, C, H, W) in [-1, 1] in a size that the network accepts.

    Args:
        path: the file.
        image_shape: (C, H, W) of the training images.
        size_multiple: divisor of the sizes that the network accepts, and the image keeps about its
            size; None: the network accepts its training size only.
    """
    image = read_image(path)[None]
    channels, height, width = image_shape
    if size_multiple is not None:
        sides = (max(1, round(side / size_multiple)) for side in image.shape[-2:])
        height, width = (side * size_multiple for side in sides)
        if height * width > MAX_PIXELS:
            raise ValueError(f"{path}: {width} x {height} pixels, expected at most {MAX_PIXELS:,}.")
    if image.shape[1:] != (channels, height, width):
        before = f"{image.shape[-1]} x {image.shape[-2]} pixels in {image.shape[1]} channels"
        print(f"{path}: {before}, resized to {width} x {height} in {channels}.")
    return to_float(resize(image, (height, width), channels))
