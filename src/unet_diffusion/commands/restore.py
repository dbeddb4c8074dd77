"""scripts/restore.py: fills, enlarges and sharpens photographs with a denoiser."""

from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
import torch
import torch.nn.functional as F
from pydantic import Field, NonNegativeInt, PositiveInt
from torch import Tensor
from tqdm import tqdm

from unet_diffusion.commands.photos import NoiseStd, PhotoArguments, process_photos
from unet_diffusion.data.photo_files import Photo
from unet_diffusion.data.sources import oriented, read_image
from unet_diffusion.errors import UserError
from unet_diffusion.experiment.schema import PathStr, Schema
from unet_diffusion.generation.photos import from_float, is_generator, photo_noise_std, to_float
from unet_diffusion.generation.pipeline import Pipeline
from unet_diffusion.generation.restoration import (
    DEBLUR_STEPS,
    deblur,
    enlarge,
    inpaint,
    kernel_of,
)
from unet_diffusion.images import image_grid, save_animation
from unet_diffusion.restoration import gaussian_kernel
from unet_diffusion.runs.run import Run

MAX_PIXELS = 24_000_000
"""Of a result: its Fourier transforms are in memory."""
_LEAST_STD = 0.3  # of 255: the error of rounding to 8 bits
_INVERSE_ORIENTATION = {6: 8, 8: 6}  # the others are their own inverse


class BlurSettings(Schema):
    """The keys of `blur`."""

    std: Annotated[float, Field(gt=0, le=20)]
    kernel: PathStr | None


class Arguments(PhotoArguments):
    """The keys of conf/restore.yaml."""

    task: Literal["inpaint", "enlarge", "deblur"]
    mask: PathStr | None
    factor: Literal[2, 3, 4]
    blur: BlurSettings
    noise_std: NoiseStd | None
    steps: PositiveInt | None
    seed: NonNegativeInt
    label: str | int
    trajectory: bool


def restore(arguments: Arguments) -> Path:
    """Restores an image file or the images of a folder, and returns the output directory."""
    run = Run.open(arguments.run)
    pipeline = Pipeline.from_pretrained(
        run, checkpoint=arguments.checkpoint, weights=arguments.weights, device=arguments.device
    )
    generates = is_generator(run.config)
    default = 100 if generates else DEBLUR_STEPS if arguments.task == "deblur" else 24
    steps = arguments.steps or default
    options: dict[str, Any] = {"steps": steps}
    if generates:
        label = None if arguments.label == "auto" else arguments.label  # its class is not known
        options |= {"seed": arguments.seed, "label": label}
    restore_page = {"inpaint": _inpaint, "enlarge": _enlarge, "deblur": _deblur}[arguments.task]

    def process(photo: Photo, target: Path, progress: "tqdm[Any]") -> tuple[list[np.ndarray], str]:
        progress.unit = " steps"
        progress.total = steps * len(photo.pages)
        frames: list[Tensor] = []

        def on_step(x: Tensor) -> None:
            progress.update()
            if arguments.trajectory:
                frames.append(image_grid(x, columns=1))

        _check_size(photo, arguments.factor if arguments.task == "enlarge" else 1)
        std, text = _noise_std(arguments, photo)
        page_options = {**options, "noise_std": std / 127.5, "on_step": on_step}
        pages = [
            restore_page(arguments, pipeline, photo, page, page_options) for page in photo.pages
        ]
        if arguments.trajectory:
            save_animation(frames, target.with_name(f"{target.stem}-steps.gif"))
        return pages, f"{arguments.task}, {text}, {steps} steps"

    return process_photos(arguments, run, "restored", process)


def _check_size(photo: Photo, factor: int) -> None:
    """Checks that the result fits into memory."""
    height, width = (side * factor for side in photo.pages[0].shape[:2])
    if height * width > MAX_PIXELS:
        raise UserError(f"the result has {width} x {height} pixels, at most {MAX_PIXELS:,}.")


def _noise_std(arguments: Arguments, photo: Photo) -> tuple[float, str]:
    """The standard deviation of the noise, of 255, and a text that says where it is from."""
    given, is_blurred = arguments.noise_std, arguments.task == "deblur"
    std = given or 0.0
    if is_blurred:
        std = max(_LEAST_STD, photo_noise_std(photo) if given is None else given)
    is_estimated = is_blurred and given is None
    return std, f"noise_std={std:.1f}" + " (estimated)" * is_estimated


def _inpaint(
    arguments: Arguments,
    pipeline: Pipeline,
    photo: Photo,
    page: np.ndarray,
    options: dict[str, Any],
) -> np.ndarray:
    alpha = page[..., -1:] if photo.has_alpha else None
    if arguments.mask is not None:
        known = _read_mask(Path(arguments.mask), photo)
    elif alpha is None:
        raise UserError("mask=null: the image has no transparent pixels. Set mask.")
    else:
        known = torch.from_numpy(alpha[..., 0] > 0)
        alpha = np.full_like(alpha, photo.value_range[1])
    return _stored(inpaint(pipeline, to_float(page, photo)[None], known, **options), alpha, photo)


def _enlarge(
    arguments: Arguments,
    pipeline: Pipeline,
    photo: Photo,
    page: np.ndarray,
    options: dict[str, Any],
) -> np.ndarray:
    alpha = None
    if photo.has_alpha:
        values = torch.from_numpy(page[..., -1].astype(np.float32))[None, None]
        larger = F.interpolate(values, scale_factor=arguments.factor, mode="bicubic")
        alpha = larger[0, 0, ..., None].clamp(*photo.value_range).round().numpy().astype(page.dtype)
    x = enlarge(pipeline, to_float(page, photo)[None], arguments.factor, **options)
    return _stored(x, alpha, photo)


def _deblur(
    arguments: Arguments,
    pipeline: Pipeline,
    photo: Photo,
    page: np.ndarray,
    options: dict[str, Any],
) -> np.ndarray:
    blur = arguments.blur
    kernel = gaussian_kernel(blur.std)
    if blur.kernel is not None:
        kernel = kernel_of(read_image(Path(blur.kernel).expanduser()))
    x = deblur(pipeline, to_float(page, photo)[None], kernel, **options)
    return _stored(x, page[..., -1:] if photo.has_alpha else None, photo)


def _stored(x: Tensor, alpha: np.ndarray | None, photo: Photo) -> np.ndarray:
    """Pixels (H, W, C) of a restored image (1, C, H, W), in the dtype of the photograph."""
    pixels = from_float(x[0], photo)
    return pixels if alpha is None else np.concatenate([pixels, alpha], axis=2)


def _read_mask(file: Path, photo: Photo) -> Tensor:
    """The known pixels (H, W) of a photograph as stored; the mask is of the upright image."""
    image = read_image(file.expanduser()).float().mean(dim=0)
    orientation = _INVERSE_ORIENTATION.get(photo.orientation, photo.orientation)
    known = torch.from_numpy(oriented(image.numpy(), orientation)) < 127.5
    if known.shape != photo.pages[0].shape[:2]:
        size, expected = list(known.shape), list(photo.pages[0].shape[:2])
        raise UserError(f"mask={file}: height and width are {size}, those of the image {expected}.")
    if not known.any():
        raise UserError(f"mask={file}: all pixels are white, which is missing.")
    return known
