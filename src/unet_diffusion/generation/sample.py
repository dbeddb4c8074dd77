"""scripts/sample.py: images from a trained run, as a grid and an archive."""

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
import torch
from pydantic import Field, NonNegativeInt, PositiveInt, validate_call
from torch import Tensor

from unet_diffusion.config import STRICT
from unet_diffusion.data.cache import resize
from unet_diffusion.data.sources import read_image
from unet_diffusion.diffusion.noise import seeded_noise, slerp
from unet_diffusion.generation.denoise import check_size
from unet_diffusion.generation.pipeline import Pipeline
from unet_diffusion.hardware import DType
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
    num_samples: PositiveInt = 64,
    seed: NonNegativeInt = 0,
    batch_size: Literal["auto"] | PositiveInt = "auto",
    label: str | int = "auto",
    guidance_scale: float | None = None,
    init_image: str | None = None,
    strength: Annotated[float, Field(gt=0, le=1)] | None = None,
    to_seed: NonNegativeInt | None = None,
    trajectory: bool = False,
    animation: Literal["gif", "webp"] | None = None,
    columns: Annotated[int, Field(ge=2, le=1000)] = 8,
    device: str = "auto",
    dtype: DType = "auto",
    output: str | None = None,
    sampler: dict[str, Any] | None = None,
) -> Path:
    """Generates images and writes them; see conf/sample.yaml for the arguments.

    Returns:
        The output directory, with grid.png and samples.npz (uint8, N x H x W x C, in arr_0 and the
        labels in arr_1: the format of the ADM evaluation suite, Dhariwal and Nichol 2021).
    """
    if strength is not None and init_image is None:
        raise ValueError(f"strength={strength}: requires init_image.")
    strength = 0.6 if strength is None else strength
    pipeline = Pipeline.from_pretrained(
        Run.open(run),
        checkpoint=checkpoint,
        weights=weights,
        device=device,
        dtype=dtype,
        sampler=sampler,
        guidance_scale=guidance_scale,
    )
    default = pipeline.run.output_dir / "samples" / unique_name()
    directory = default if output is None else Path(output).expanduser()

    shape: Sequence[int] = pipeline.run.image_shape
    x0 = None
    if init_image is not None:
        label = "none" if label == "auto" else label  # the image has no known class
        x0 = _load_init_image(Path(init_image).expanduser(), pipeline)
        shape = x0.shape[1:]
    labels = pipeline.labels(label, num_samples)
    eps = seeded_noise(seed, range(num_samples), shape)
    if to_seed is not None:  # one row per image, from its noise to that of to_seed
        rows = min(num_samples, columns)
        end = seeded_noise(to_seed, range(rows), shape)
        positions = torch.linspace(0, 1, columns).tolist()
        eps = torch.stack([slerp(eps[:rows], end, each) for each in positions], 1).flatten(0, 1)
        labels = None if labels is None else labels[:rows].repeat_interleave(columns)

    generated = pipeline(
        len(eps),
        label="none" if labels is None else labels,
        seed=seed,
        eps=eps,
        batch_size=None if batch_size == "auto" else batch_size,
        x0=None if x0 is None else x0.expand(len(eps), -1, -1, -1),
        strength=strength,
        return_trajectory=trajectory or animation is not None,
    )

    row_labels = labels if to_seed is None else None
    save_png(_grid(generated.images, row_labels, columns), directory / "grid.png")
    arrays = {"arr_0": to_uint8(generated.images).permute(0, 2, 3, 1).numpy()}
    if labels is not None:
        arrays["arr_1"] = labels.numpy()
    np.savez_compressed(directory / "samples.npz", **arrays)  # type: ignore[arg-type]
    if trajectory:
        save_png(trajectory_strip(generated.trajectory, rows=8), directory / "trajectory.png")
    if animation:
        frames = [_grid(images, row_labels, columns) for images in generated.trajectory]
        save_animation(frames, directory / f"trajectory.{animation}")
    settings = pipeline.settings(generated.nfe, seed, label)
    settings |= {"init_image": init_image, "strength": strength} if init_image else {}
    settings |= {} if to_seed is None else {"to_seed": to_seed}
    write_json(directory / "settings.json", settings)
    print(f"{len(eps)} images: {', '.join(f'{key} {value}' for key, value in settings.items())}.")
    print(f"Saved to {os.path.relpath(directory)}: grid.png, samples.npz, settings.json.")
    return directory


def _grid(images: Tensor, labels: Tensor | None, columns: int) -> Tensor:
    """Up to columns x columns images, or a row per class if every class has several images."""
    rows = [] if labels is None else [images[labels == each] for each in torch.unique(labels)]
    shown = min([columns, *map(len, rows)])
    if not 2 <= len(rows) <= 50 or shown < 2:
        return image_grid(images[: columns * columns], columns)
    return image_grid(torch.cat([row[:shown] for row in rows]), shown)


def _load_init_image(path: Path, pipeline: Pipeline) -> Tensor:
    """Reads an image file as (1, C, H, W) in [-1, 1] in a size that the network accepts."""
    image = read_image(path)[None]
    channels, height, width = pipeline.run.image_shape
    if multiple := getattr(pipeline.denoiser.net, "size_multiple", None):
        height, width = (max(1, round(side / multiple)) * multiple for side in image.shape[-2:])
        check_size(path, height, width)
    return to_float(resize(image, (height, width), channels))
