"""scripts/denoise.py: denoises photographs of any size."""

import os
import time
from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field
from tqdm import tqdm

from unet_diffusion.data.photo_files import SUFFIXES, Photo, check_format, encode_photo, read_photo
from unet_diffusion.diffusion.denoiser import Denoiser
from unet_diffusion.errors import UserError
from unet_diffusion.experiment.locations import unique_name
from unet_diffusion.experiment.schema import Fraction, PathStr, Schema
from unet_diffusion.generation.denoising import noise_level_of
from unet_diffusion.generation.photos import denoise_pages, highest_noise_level, photo_noise_std
from unet_diffusion.hardware import select_device
from unet_diffusion.runs.files import write_atomically
from unet_diffusion.runs.run import Run, Weights


class ImageNoise(Schema):
    """The noise of the input images."""

    std: Annotated[float, Field(ge=0, le=255)] | None
    percent: Fraction | None
    additive: bool


class Arguments(Schema):
    """The keys of conf/denoise.yaml."""

    run: PathStr
    input: PathStr
    checkpoint: str
    weights: Weights
    noise: ImageNoise
    strength: Fraction
    format: Literal["jpg", "png", "tif", "webp"] | None
    device: str
    output: PathStr | None


def denoise(arguments: Arguments) -> Path:
    """Denoises an image file or a folder.

    An image that cannot be denoised does not stop the others: the UserError at the end names it.

    Returns:
        The output directory, with a file of the same name and format for each image.
    """
    if arguments.noise.std is not None and arguments.noise.percent is not None:
        raise UserError("noise.std and noise.percent: set one of them.")
    files = input_files(Path(arguments.input).expanduser())
    run = Run.open(arguments.run)
    device = select_device(arguments.device)
    denoiser = run.load_denoiser(arguments.checkpoint, arguments.weights, device)
    directory = run.output_dir / "denoised" / unique_name()
    if arguments.output is not None:
        directory = Path(arguments.output).expanduser()
    names = [f"{f.stem}.{arguments.format}" if arguments.format else f.name for f in files]
    targets = [directory / name for name in names]
    if len(set(targets)) < len(targets):
        raise UserError(f"format={arguments.format}: two images differ in their suffix only.")
    if existing := [target for target in targets if target.exists()]:
        raise UserError(f"output={directory}: {existing[0].name} exists already.")
    errors = []
    for file, target in zip(files, targets, strict=True):
        try:
            start = time.perf_counter()
            photo = read_photo(file)
            kind = arguments.format or photo.kind
            check_format(photo, kind)  # before minutes of work
            t, source = noise_level(photo, denoiser, run, arguments.noise)
            with tqdm(
                total=sum(map(len, photo.pages)), desc=file.name, unit=" rows", delay=2, leave=False
            ) as progress:
                pages = denoise_pages(
                    photo,
                    denoiser,
                    t,
                    run.config.image_shape,
                    additive=arguments.noise.additive,
                    strength=arguments.strength,
                    on_rows=progress.update,
                )
            write_atomically(target, encode_photo(photo, pages, kind))
        except UserError as error:
            errors.append(str(error))
            continue
        height, width = photo.pages[0].shape[:2]
        size = f"{width} x {height} pixels" + f", {len(pages)} pages" * (len(pages) > 1)
        seconds = time.perf_counter() - start
        print(f"{os.path.relpath(target)}: {source}, {size}, {seconds:.1f} s")
    if errors:
        raise UserError(f"{len(errors)} of {len(files)} images skipped: {' '.join(errors)}")
    return directory


def noise_level(photo: Photo, denoiser: Denoiser, run: Run, noise: ImageNoise) -> tuple[float, str]:
    """The t of a photograph, and a text that says where it is from."""
    if noise.percent is not None:
        return noise.percent, f"noise.percent={noise.percent:g} (given)"
    std = photo_noise_std(photo) if noise.std is None else noise.std
    t = noise_level_of(std / 127.5, denoiser.schedule, noise.additive)
    text = f"noise.std={std:.1f} ({'estimated' if noise.std is None else 'given'})"
    highest = highest_noise_level(run.config)
    if t > highest:
        return highest, f"{text}, more than in training (noise.percent={highest:g})"
    return t, text


def input_files(path: Path) -> list[Path]:
    """The file, or the images of a folder."""
    if not path.exists():
        raise UserError(f"input={path}: no such file or directory.")
    if not path.is_dir():
        return [path]
    files = sorted(file for file in path.iterdir() if file.suffix.lower() in SUFFIXES)
    if not files:
        raise UserError(f"input={path}: no images found ({', '.join(SUFFIXES)}).")
    return files
