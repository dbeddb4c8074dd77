"""scripts/denoise.py: denoises image files."""

import os
from pathlib import Path

import torch

from unet_diffusion.data.sources import IMAGE_SUFFIXES, read_image
from unet_diffusion.errors import UserError
from unet_diffusion.experiment.locations import unique_name
from unet_diffusion.experiment.schema import Fraction, PathStr, Schema
from unet_diffusion.generation.denoising import (
    check_size,
    denoise_image,
    estimate_noise_std,
    noise_level_of,
)
from unet_diffusion.hardware import select_device
from unet_diffusion.images import image_grid, save_png, to_float, to_uint8
from unet_diffusion.runs.run import Run, Weights


class ImageNoise(Schema):
    """The noise of the input images."""

    percent: Fraction | None
    additive: bool


class Arguments(Schema):
    """The keys of conf/denoise.yaml."""

    run: PathStr
    input: PathStr
    checkpoint: str
    weights: Weights
    noise: ImageNoise
    device: str
    output: PathStr | None


def denoise(arguments: Arguments) -> Path:
    """Denoises an image file or a folder.

    If an image cannot be read, the others are denoised before the UserError.

    Returns:
        The output directory, with a PNG for each image and noisy-denoised pairs in pairs/.
    """
    files = _input_files(Path(arguments.input).expanduser())
    run, additive = Run.open(arguments.run), arguments.noise.additive
    device = select_device(arguments.device)
    denoiser = run.load_denoiser(arguments.checkpoint, arguments.weights, device)
    directory = run.output_dir / "denoised" / unique_name()
    if arguments.output is not None:
        directory = Path(arguments.output).expanduser()
        if existing := [f for f in files if (directory / f"{f.stem}.png").exists()]:
            raise UserError(f"output={arguments.output}: {existing[0].stem}.png exists already.")
    image_shape = run.config.image_shape
    if not denoiser.net.size_multiple:
        size = f"{image_shape[2]} x {image_shape[1]}"
        print(f"The network accepts {size} pixels only: edges of tiles can be visible.")
    errors = []
    for file in files:
        try:
            image = read_image(file)
            check_size(file, *image.shape[-2:])
        except UserError as error:
            errors.append(str(error))
            continue
        xt = to_float(image)[None]
        t = arguments.noise.percent
        if t is None:
            t = noise_level_of(estimate_noise_std(xt), denoiser.schedule, additive)
        denoised = denoise_image(denoiser, xt, t, additive, image_shape)
        target = directory / f"{file.stem}.png"
        save_png(to_uint8(denoised[0]), target)
        pair = image_grid(torch.cat([xt, denoised]), columns=2)
        save_png(pair, directory / "pairs" / target.name)
        source = "estimated" if arguments.noise.percent is None else "given"
        path, size = os.path.relpath(target), f"{xt.shape[-1]} x {xt.shape[-2]}"
        print(f"{path}: noise.percent={t:.2f} ({source}), {size} pixels")
    if errors:
        raise UserError(f"{len(errors)} of {len(files)} images skipped: {' '.join(errors)}")
    return directory


def _input_files(path: Path) -> list[Path]:
    if not path.exists():
        raise UserError(f"input={path}: no such file or directory.")
    if not path.is_dir():
        return [path]
    files = sorted(file for file in path.iterdir() if file.suffix.lower() in IMAGE_SUFFIXES)
    if not files:
        raise UserError(f"input={path}: no images found ({', '.join(IMAGE_SUFFIXES)}).")
    if len({file.stem for file in files}) < len(files):
        raise UserError(f"input={path}: two images differ in their suffix only.")
    return files
