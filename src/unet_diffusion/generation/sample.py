"""scripts/sample.py: images from a trained run, as a grid and an archive."""

import os
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
import torch
from pydantic import Field, validate_call
from torch import Tensor

from unet_diffusion.config import STRICT
from unet_diffusion.diffusion.noise import seeded_noise, slerp
from unet_diffusion.generation.input_image import load_input_image
from unet_diffusion.generation.pipeline import Pipeline, is_first_process
from unet_diffusion.images import image_grid, save_animation, save_png, to_uint8, trajectory_strip
from unet_diffusion.runs import Run, Weights, unique_name, write_json
from unet_diffusion.samplers.base import SamplerOutput


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
    image = None
    if init_image is not None:
        size_multiple = getattr(pipeline.denoiser.net, "size_multiple", None)
        image = load_input_image(Path(init_image).expanduser(), shape, size_multiple)
        shape = (image.x0.shape[1], image.x0.shape[2], image.x0.shape[3])
    labels = pipeline.labels(label, num_samples)
    eps = seeded_noise(seed, range(num_samples), shape)
    if to_seed is not None:
        rows = min(num_samples, columns)
        end = seeded_noise(to_seed, range(rows), shape)
        eps = interpolate(eps[:rows], end, columns)
        labels = None if labels is None else labels[:rows].repeat_interleave(columns)

    generated = pipeline.generate(
        eps,
        labels,
        seed=seed,
        batch_size=None if batch_size == "auto" else batch_size,
        x0=None if image is None else image.x0.expand(len(eps), -1, -1, -1),
        strength=0.6 if strength is None else strength,
        return_trajectory=trajectory or animation is not None,
    )
    if image is not None:
        steps = [image.crop(images) for images in generated.trajectory]
        generated = SamplerOutput(image.crop(generated.images), generated.nfe, steps)
    if not is_first_process():
        return directory

    by_class = labels is not None and to_seed is None
    _save(generated, labels, by_class, columns, directory, trajectory, animation)
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


def _save(
    generated: SamplerOutput,
    labels: Tensor | None,
    by_class: bool,
    columns: int,
    directory: Path,
    trajectory: bool,
    animation: str | None,
) -> None:
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
