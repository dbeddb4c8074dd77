"""Any folder of images: grey or colour, any sizes and modes, with or without a subfolder for each class."""

import hashlib
import warnings
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageOps
from torch import Tensor

from unet_diffusion.data.sources import NO_LABEL, ImageSource, RawSplit, SplitName, UnreadableImageError, file_stamp
from unet_diffusion.errors import UserError, first_line, printable
from unet_diffusion.paths import files_below

ENDINGS = (".png", ".jpg", ".jpeg", ".webp", ".bmp", ".tif", ".tiff")
MOST_PIXELS = 89_478_485
"""Of one image: where Pillow, too, begins to suspect a decompression bomb."""
_MOST_BYTES = 1 << 29
_FORMATS = ("PNG", "JPEG", "WEBP", "BMP", "TIFF", "GIF")  # of all that Pillow knows, some start other programs (EPS)


class ImageFolder(ImageSource):
    """The images below `root`, in whatever subfolders.

    Where `root` has both a `train` and a `test` folder, these are the splits; otherwise there is no test split of its own.
    Where every image lies in a subfolder, the first subfolder's name is its class.
    """

    name = "image_folder"

    def fingerprint(self, split: SplitName, root: Path | None) -> str | None:
        files = _files_by_split(root)
        if split not in files:
            return None
        folder, paths = files[split]
        digest = hashlib.sha256(f"{folder.resolve()}\0{_class_names(files)}".encode(errors="surrogateescape"))
        for path in paths:
            digest.update(f"{path.relative_to(folder)}\0{file_stamp(path)}\0".encode(errors="surrogateescape"))
        return digest.hexdigest()

    def open(self, split: SplitName, root: Path | None) -> RawSplit:
        files = _files_by_split(root)
        if split not in files:
            raise ValueError(f"{root} has no {split} split of its own")
        folder, paths = files[split]
        if not paths:
            raise UserError(f"data.root={folder} holds no images: it should have files ending in {', '.join(ENDINGS)}")
        return FolderSplit(folder, paths, _class_names(files))


class FolderSplit(RawSplit):
    """Image files, decoded one at a time."""

    chunk_size = 1

    def __init__(self, folder: Path, paths: list[Path], class_names: tuple[str, ...]) -> None:
        self.paths = paths
        self.class_names = class_names
        number = {name: i for i, name in enumerate(class_names)}
        self.labels = np.array([number.get(path.relative_to(folder).parts[0], NO_LABEL) for path in paths], dtype=np.int64)

    def read(self, start: int, stop: int) -> Tensor:
        return torch.stack([decode(path) for path in self.paths[start:stop]])


def decode(path: Path, most_pixels: int = MOST_PIXELS) -> Tensor:
    """One image file as uint8 (C, H, W), C = 1 or 3, turned upright as its EXIF data says; transparency lies on white.

    What it is is seen by its content, not by its name; of several pictures in one file the first is taken.

    Args:
        path: a regular file.
        most_pixels: the largest size taken, as a number of pixels, which is checked before anything is decoded.

    Raises:
        UnreadableImageError: it cannot be decoded, or is too large; says which file and why.
    """
    try:
        if path.stat().st_size > _MOST_BYTES:
            raise ValueError(f"it has {path.stat().st_size:,} bytes, and at most {_MOST_BYTES:,} are taken")
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # remarks on odd metadata
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            with Image.open(path, formats=_FORMATS) as opened:
                if opened.width * opened.height > most_pixels:
                    raise ValueError(
                        f"it has {opened.width} x {opened.height} pixels, and at most {most_pixels:,} in all are taken, "
                        f"as larger images may not fit into memory: make it smaller"
                    )
                array = _as_bytes(ImageOps.exif_transpose(opened))
    except Exception as error:
        raise UnreadableImageError(f"{printable(path)} ({printable(first_line(error))})") from error
    array = array if array.ndim == 3 else array[..., None]
    return torch.from_numpy(array).permute(2, 0, 1)


def _as_bytes(image: Image.Image) -> np.ndarray:
    """uint8 (H, W) or (H, W, 3) from an image of any mode."""
    if image.mode.startswith("I"):  # 16 bits a pixel; Pillow's own conversion would clip at 255
        return _rounded(np.asarray(image, dtype=np.float32) / 257)
    if image.mode == "F":  # floating-point TIFF, taken as 0 = black, 1 = white
        return _rounded(np.asarray(image, dtype=np.float32) * 255)
    if image.mode in ("LA", "PA", "RGBA", "RGBa", "La") or "transparency" in image.info:
        white = Image.new("RGBA", image.size, "white")
        grey = image.mode in ("1", "L", "LA", "La")
        return np.array(Image.alpha_composite(white, image.convert("RGBA")).convert("L" if grey else "RGB"))
    return np.array(image.convert("L" if image.mode in ("1", "L") else "RGB"))


def _rounded(values: np.ndarray) -> np.ndarray:
    if not (np.isfinite(values).all() and values.min() >= -0.5 and values.max() <= 255.5):
        raise ValueError("its values lie outside 0..65535 (whole numbers) or 0..1 (floating point)")
    rounded: np.ndarray = np.clip(np.rint(values, out=values), 0, 255, out=values).astype(np.uint8)
    return rounded


def _files_by_split(root: Path | None) -> dict[SplitName, tuple[Path, list[Path]]]:
    """Each split's folder and the image files below it."""
    if root is None:
        raise UserError("data=image_folder needs the folder with the images: name it by data.root=...")
    if not root.is_dir():
        raise UserError(f"data.root={root} is not a folder: name one that holds images")
    folders: dict[SplitName, Path] = {"train": root / "train", "test": root / "test"}
    if not all(folder.is_dir() for folder in folders.values()):
        folders = {"train": root}
    return {split: (folder, _image_files(folder)) for split, folder in folders.items()}


def _class_names(files: dict[SplitName, tuple[Path, list[Path]]]) -> tuple[str, ...]:
    """The same for all splits, so that a class has one number even where a split lacks some."""
    parts = [path.relative_to(folder).parts for folder, paths in files.values() for path in paths]
    return tuple(sorted({p[0] for p in parts})) if all(len(p) > 1 for p in parts) else ()


def _image_files(folder: Path) -> list[Path]:
    return sorted(path for path in files_below(folder) if path.suffix.lower() in ENDINGS)
