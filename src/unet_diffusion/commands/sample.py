"""scripts/sample.py: images from a trained run, as a grid and an archive."""

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Literal

import numpy as np
import torch
from pydantic import Field, NonNegativeInt, PositiveInt
from torch import Tensor

from unet_diffusion.commands.arguments import PipelineArguments
from unet_diffusion.data.cache import resize
from unet_diffusion.data.sources import read_image
from unet_diffusion.diffusion.noise import seeded_noise, slerp
from unet_diffusion.errors import UserError
from unet_diffusion.experiment.locations import unique_name
from unet_diffusion.experiment.schema import PathStr
from unet_diffusion.generation.pipeline import Pipeline
from unet_diffusion.images import (
    image_grid,
    save_animation,
    save_png,
    to_float,
    to_uint8,
    trajectory_strip,
)
from unet_diffusion.runs.files import write_json

MAX_INIT_PIXELS = 1 << 20


class Arguments(PipelineArguments):
    """The keys of conf/sample.yaml."""

    num_samples: PositiveInt
    seed: NonNegativeInt
    batch_size: Literal["auto"] | PositiveInt
    label: str | int
    init_image: PathStr | None
    strength: Annotated[float, Field(gt=0, le=1)] | None
    to_seed: NonNegativeInt | None
    trajectory: bool
    animation: Literal["gif", "webp"] | None
    columns: Annotated[int, Field(ge=2, le=1000)]
    output: PathStr | None


def sample(arguments: Arguments) -> Path:
    """Generates images and writes them.

    Returns:
        The output directory, with grid.png and samples.npz (uint8, N x H x W x C, in arr_0 and the
        labels in arr_1: the format of the ADM evaluation suite, Dhariwal and Nichol 2021).
    """
    if arguments.strength is not None and arguments.init_image is None:
        raise UserError(f"strength={arguments.strength}: requires init_image.")
    pipeline = arguments.load(arguments.open_run())
    default = pipeline.run.output_dir / "samples" / unique_name()
    output = arguments.output
    directory = default if output is None else Path(output).expanduser()
    seed, columns = arguments.seed, arguments.columns

    shape: Sequence[int] = pipeline.run.config.image_shape
    label: str | int | None = arguments.label
    x0 = None
    strength = 0.6 if arguments.strength is None else arguments.strength
    if arguments.init_image is not None:
        label = None if label == "auto" else label  # the image has no known class
        x0 = _load_init_image(Path(arguments.init_image).expanduser(), pipeline)
        shape = x0.shape[1:]
    labels = pipeline.labels(label, arguments.num_samples)
    eps = seeded_noise(seed, range(arguments.num_samples), shape)
    if arguments.to_seed is not None:  # one row per image, from its noise to that of to_seed
        rows = min(arguments.num_samples, columns)
        end = seeded_noise(arguments.to_seed, range(rows), shape)
        positions = torch.linspace(0, 1, columns).tolist()
        eps = torch.stack([slerp(eps[:rows], end, each) for each in positions], 1).flatten(0, 1)
        labels = None if labels is None else labels[:rows].repeat_interleave(columns)

    generated = pipeline(
        len(eps),
        label=labels,
        seed=seed,
        eps=eps,
        batch_size=None if arguments.batch_size == "auto" else arguments.batch_size,
        x0=None if x0 is None else x0.expand(len(eps), -1, -1, -1),
        strength=strength,
        return_trajectory=arguments.trajectory or arguments.animation is not None,
    )

    row_labels = labels if arguments.to_seed is None else None
    save_png(_grid(generated.images, row_labels, columns), directory / "grid.png")
    arrays = {"arr_0": to_uint8(generated.images).permute(0, 2, 3, 1).numpy()}
    if labels is not None:
        arrays["arr_1"] = labels.numpy()
    np.savez_compressed(directory / "samples.npz", **arrays)  # type: ignore[arg-type]
    if arguments.trajectory:
        save_png(trajectory_strip(generated.trajectory, rows=8), directory / "trajectory.png")
    if arguments.animation:
        frames = [_grid(images, row_labels, columns) for images in generated.trajectory]
        save_animation(frames, directory / f"trajectory.{arguments.animation}")
    settings = pipeline.settings(generated.nfe, seed, label)
    if arguments.init_image:
        settings |= {"init_image": arguments.init_image, "strength": strength}
    if arguments.to_seed is not None:
        settings["to_seed"] = arguments.to_seed
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
    channels, height, width = pipeline.run.config.image_shape
    if multiple := pipeline.denoiser.net.size_multiple:
        height, width = (max(1, round(side / multiple)) * multiple for side in image.shape[-2:])
        if height * width > MAX_INIT_PIXELS:
            size = f"{width} x {height} pixels"
            raise UserError(f"{path}: {size}, expected at most {MAX_INIT_PIXELS:,}.")
    return to_float(resize(image, (height, width), channels))
