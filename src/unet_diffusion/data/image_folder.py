"""Folders of image files of any size and mode, with or without a subfolder for each class."""

import warnings
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageOps
from torch import Tensor

from unet_diffusion.data.sources import ImageSource, RawSplit, SplitName

IMAGE_SUFFIXES = (".png", ".jpg", ".jpeg", ".webp", ".bmp", ".tif", ".tiff")
_FORMATS = ("PNG", "JPEG", "WEBP", "BMP", "TIFF", "GIF")  # some of Pillow's others run programs


class ImageFolder(ImageSource):
    """The image files below `root`.

    If `root` has the subfolders `train` and `test`, they are the splits; otherwise there is no test
    split. If every image is in a subfolder, the name of the first subfolder is its class.
    """

    name = "image_folder"

    def fingerprint(self, split: SplitName, root: Path | None) -> str | None:
        folders = self._split_folders(root)
        if split not in folders:
            return None
        stats = {str(path): path.stat() for path in find_images(folders[split].resolve())}
        return repr([(path, stat.st_size, stat.st_mtime_ns) for path, stat in stats.items()])

    def load(self, split: SplitName, root: Path | None) -> RawSplit:
        folders = self._split_folders(root)
        files = find_images(folders[split])
        if not files:
            raise ValueError(
                f"data.root={folders[split]}: no images found ({', '.join(IMAGE_SUFFIXES)})."
            )
        # One numbering for all splits, even if a split lacks a class.
        paths = [each.relative_to(top) for top in folders.values() for each in find_images(top)]
        has_classes = all(len(path.parts) > 1 for path in paths)
        class_names = sorted({path.parts[0] for path in paths}) if has_classes else []
        index = {name: i for i, name in enumerate(class_names)}
        labels = [index.get(file.relative_to(folders[split]).parts[0], -1) for file in files]
        return RawSplit(files, np.array(labels, dtype=np.int64), tuple(class_names))

    def _split_folders(self, root: Path | None) -> dict[SplitName, Path]:
        if root is None:
            raise ValueError("data=image_folder: set data.root to the folder with the images.")
        if not root.is_dir():
            raise ValueError(f"data.root={root}: not a folder.")
        folders: dict[SplitName, Path] = {"train": root / "train", "test": root / "test"}
        return folders if all(folder.is_dir() for folder in folders.values()) else {"train": root}


def find_images(folder: Path) -> list[Path]:
    """All image files below a folder, sorted."""
    files = (path for path in folder.rglob("*") if path.suffix.lower() in IMAGE_SUFFIXES)
    return sorted(path for path in files if path.is_file())


def read_image(path: Path) -> Tensor:
    """Reads an image file as uint8 (C, H, W), C = 1 or 3.

    The EXIF orientation is applied, transparency is composed on white, and 16-bit images are scaled
    to 8 bits. Of an animation the first frame is read. A file that cannot be decoded or exceeds
    Pillow's pixel limit is a ValueError.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # remarks about metadata
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            with Image.open(path, formats=_FORMATS) as opened:
                array = _to_uint8(ImageOps.exif_transpose(opened))
    except FileNotFoundError as error:
        raise ValueError(f"Cannot read {path}: no such file.") from error
    except Exception as error:  # Pillow raises many types for damaged files
        raise ValueError(f"Cannot read {path}: {error}") from error
    return torch.from_numpy(array if array.ndim == 3 else array[..., None]).permute(2, 0, 1)


def _to_uint8(image: Image.Image) -> np.ndarray:
    """uint8 (H, W) or (H, W, 3) from an image of any mode."""
    if image.mode.startswith("I"):  # 16 bits; Pillow's own conversion clips at 255
        return np.rint(np.asarray(image, np.float32) / 257).clip(0, 255).astype(np.uint8)
    if image.mode == "F":  # floating-point TIFF in [0, 1]
        values = np.nan_to_num(np.asarray(image, np.float32))
        return np.rint(values * 255).clip(0, 255).astype(np.uint8)
    mode = "L" if image.mode in ("1", "L", "LA", "La") else "RGB"
    if image.mode in ("LA", "PA", "RGBA", "RGBa", "La") or "transparency" in image.info:
        white = Image.new("RGBA", image.size, "white")
        image = Image.alpha_composite(white, image.convert("RGBA"))
    return np.array(image.convert(mode))
