"""What commands on photographs share: their files, progress and errors."""

import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
from pydantic import Field
from tqdm import tqdm

from unet_diffusion.data.photo_files import SUFFIXES, Photo, check_format, encode_photo, read_photo
from unet_diffusion.errors import UserError
from unet_diffusion.experiment.locations import unique_name
from unet_diffusion.experiment.schema import PathStr, Schema
from unet_diffusion.runs.files import write_atomically
from unet_diffusion.runs.run import Run, Weights

NoiseStd = Annotated[float, Field(ge=0, le=255)]
Process = Callable[[Photo, Path, "tqdm[Any]"], tuple[list[np.ndarray], str]]
"""Maps a photograph, the file to write and a progress bar to new pages, and a text on them."""


class PhotoArguments(Schema):
    """The keys that the commands on photographs share."""

    run: PathStr
    input: PathStr
    checkpoint: str
    weights: Weights
    format: Literal["jpg", "png", "tif", "webp"] | None
    device: str
    output: PathStr | None


def process_photos(arguments: PhotoArguments, run: Run, name: str, process: Process) -> Path:
    """Processes an image file or the images of a folder.

    An image that cannot be processed does not stop the others: the UserError at the end names it.

    Args:
        arguments: the files.
        run: in its folder `name` are the results by default.
        name: of the folder.
        process: called with each photograph.

    Returns:
        The output directory, with a file of the same name and format for each image.
    """
    files = input_files(Path(arguments.input).expanduser())
    directory = run.output_dir / name / unique_name()
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
            progress: tqdm[Any] = tqdm(desc=file.name, delay=2, leave=False)
            with progress:
                pages, text = process(photo, target, progress)
            write_atomically(target, encode_photo(photo, pages, kind))
        except UserError as error:
            text = str(error)
            errors.append(text if file.name in text else f"{file.name}: {text}")
            continue
        height, width = pages[0].shape[:2]
        size = f"{width} x {height} pixels" + f", {len(pages)} pages" * (len(pages) > 1)
        seconds = time.perf_counter() - start
        print(f"{os.path.relpath(target)}: {text}, {size}, {seconds:.1f} s")
    if errors:
        raise UserError(f"{len(errors)} of {len(files)} images skipped: {' '.join(errors)}")
    return directory


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
