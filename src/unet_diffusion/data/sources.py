"""Image sources: the datasets before resizing, and how image files are read."""

import gzip
import os
import re
import warnings
from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from io import BytesIO
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from PIL import ExifTags, Image
from torch import Tensor
from torchvision import datasets

from unet_diffusion.errors import UserError

SplitName = Literal["train", "test"]
ImageFile = Path | dict[str, Any]
"""A file, or a row of `datasets.Image`: its `bytes` or its `path`."""
IMAGE_SUFFIXES = (".png", ".jpg", ".jpeg", ".jfif", ".webp", ".bmp", ".tif", ".tiff")
SPLIT_NAMES = {"train": "train", "training": "train", "test": "test", "testing": "test"}
SPLIT_NAMES |= dict.fromkeys(("val", "valid", "validation"), "val")
FORMATS = ("PNG", "JPEG", "WEBP", "BMP", "TIFF", "GIF")  # some of Pillow's others run programs


@dataclass(frozen=True)
class RawSplit:
    """One split before resizing."""

    images: np.ndarray | Sequence[ImageFile]  # uint8 (N, H, W) or (N, H, W, C), or files
    labels: np.ndarray  # (N,) class labels, -1 for images without a class
    class_names: tuple[str, ...] = ()  # empty for a dataset without classes


class ImageSource(ABC):
    """A dataset. Some have a test split, others only training images."""

    name: str  # for cache folders: letters, digits, `-` and `_`
    can_change: bool = False  # its images can be added and removed

    @abstractmethod
    def fingerprint(self, split: SplitName, root: Path | None) -> str | None:
        """A string that changes with the images of the split; None if there is no such split."""

    @abstractmethod
    def load(self, split: SplitName, root: Path | None) -> RawSplit:
        """The images and labels of the split."""


class FashionMNISTMini(ImageSource):
    """The first 5,000 training and 1,000 test images of Fashion-MNIST, part of the package.

    Xiao, Rasul and Vollgraf 2017, Zalando Research, MIT licence.
    """

    name = "fashion_mnist_mini"

    def fingerprint(self, split: SplitName, root: Path | None) -> str:
        return "1"

    def load(self, split: SplitName, root: Path | None) -> RawSplit:
        with np.load(Path(__file__).with_name("fashion_mnist_mini.npz")) as arrays:
            images, labels = arrays[f"{split}_images"], arrays[f"{split}_labels"]
        class_names = _class_names(datasets.FashionMNIST.classes)
        return RawSplit(images, labels.astype(np.int64), class_names)


class TorchvisionSource(ImageSource):
    """A dataset that torchvision reads from `root`, after downloading it there if needed.

    `system_root` has the dataset's gzipped files, which are used instead of a download.
    """

    def __init__(
        self, dataset: Literal["FashionMNIST", "MNIST", "CIFAR10"], system_root: str | None = None
    ) -> None:
        self.name = {"FashionMNIST": "fashion_mnist"}.get(dataset, dataset.lower())
        self.dataset = dataset
        self.system_root = None if system_root is None else Path(system_root)

    def fingerprint(self, split: SplitName, root: Path | None) -> str:
        self._load(split, root)
        assert root is not None
        folder = "cifar-10-batches-py" if self.dataset == "CIFAR10" else f"{self.dataset}/raw"
        stats = [file.stat() for file in sorted((root / folder).iterdir()) if file.is_file()]
        return "-".join(f"{stat.st_size}-{stat.st_mtime_ns}" for stat in stats)

    def load(self, split: SplitName, root: Path | None) -> RawSplit:
        loaded = self._load(split, root)
        labels = np.asarray(loaded.targets, dtype=np.int64)
        return RawSplit(np.asarray(loaded.data), labels, _class_names(loaded.classes))

    def _load(self, split: SplitName, root: Path | None) -> Any:
        if root is None:
            raise UserError(f"data={self.name}: set data.root to a folder for the dataset.")
        for file in self.system_root.glob("*-ubyte.gz") if self.system_root else ():
            target = root / self.dataset / "raw" / file.stem
            if not target.exists():
                print(f"data={self.name}: decompressing {file} to {target}.")
                target.parent.mkdir(parents=True, exist_ok=True)
                temporary = target.with_suffix(".tmp")
                temporary.write_bytes(gzip.decompress(file.read_bytes()))
                temporary.replace(target)
        try:
            dataset = getattr(datasets, self.dataset)
            return dataset(str(root), train=split == "train", download=True)
        except (OSError, RuntimeError, EOFError, ValueError) as error:
            package = ", run `apt-get install dataset-fashion-mnist`" if self.system_root else ""
            raise UserError(
                f"data={self.name}: not in data.root={root}, and the download failed ({error}). "
                f"Use a network connection{package}, or copy torchvision's folder to data.root."
            ) from error


def _class_names(classes: Sequence[str]) -> tuple[str, ...]:
    """Short names: `T-shirt/top` becomes `t-shirt`, `Ankle boot` ankle-boot, and `0 - zero` 0."""
    short = (name.split(" - ")[0].split("/")[0] for name in classes)
    return tuple(name.lower().replace(" ", "-") for name in short)


class ImageFolder(ImageSource):
    """The image files below `root`.

    Subfolders named train, test and val (in any case; also training, testing, valid, validation)
    are the splits, if there are no others; without test, val is the test split. If most images are
    in subfolders, these are the classes, and the others are skipped.
    """

    name = "image_folder"
    can_change = True

    def fingerprint(self, split: SplitName, root: Path | None) -> str | None:
        folders = self._split_folders(root)
        if split not in folders:
            return None
        # Of all splits, because their classes are numbered together.
        files = [p for top in folders.values() for p in find_images(top.resolve())]
        return f"{split} {_fingerprint(files)}"

    def load(self, split: SplitName, root: Path | None) -> RawSplit:
        folders = self._split_folders(root)
        files = find_images(folders[split])
        if not files:
            raise UserError(f"data.root={root}: no images found ({', '.join(IMAGE_SUFFIXES)}).")
        # One numbering for all splits, even if a split lacks a class.
        paths = [each.relative_to(top) for top in folders.values() for each in find_images(top)]
        in_folders = [path for path in paths if len(path.parts) > 1]
        has_classes = len(in_folders) > len(paths) / 2
        class_names = sorted({path.parts[0] for path in in_folders}) if has_classes else []
        index = {name: i for i, name in enumerate(class_names)}
        labels = [index.get(file.relative_to(folders[split]).parts[0], -1) for file in files]
        kept = [i for i, label in enumerate(labels) if label >= 0 or not has_classes]
        skipped = [file for file, label in zip(files, labels, strict=True) if label < 0]
        _print_contents(folders[split], split, labels, class_names, skipped if has_classes else [])
        kept_labels = np.array([labels[i] for i in kept], dtype=np.int64)
        return RawSplit([files[i] for i in kept], kept_labels, tuple(class_names))

    def _split_folders(self, root: Path | None) -> dict[SplitName, Path]:
        if root is None:
            raise UserError("data=image_folder: set data.root to the folder with the images.")
        if not root.is_dir():
            raise UserError(f"data.root={root}: not a folder.")
        folders = [
            path for path in sorted(root.iterdir()) if path.is_dir() and not _is_hidden(path)
        ]
        found = {SPLIT_NAMES.get(path.name.lower()): path for path in folders}
        if None in found or "train" not in found or len(found) < len(folders):
            return {"train": root}
        splits: dict[SplitName, Path] = {"train": found["train"]}
        if test := found.get("test", found.get("val")):
            splits["test"] = test
        return splits


class PhotoFolder(ImageSource):
    """All image files below `root`, without classes."""

    name = "photos"
    can_change = True

    def fingerprint(self, split: SplitName, root: Path | None) -> str | None:
        return _fingerprint(find_images(self._folder(root))) if split == "train" else None

    def load(self, split: SplitName, root: Path | None) -> RawSplit:
        folder = self._folder(root)
        files = find_images(folder)
        if not files:
            raise UserError(f"data.root={root}: no images found ({', '.join(IMAGE_SUFFIXES)}).")
        labels = np.full(len(files), -1)
        _print_contents(folder, split, labels.tolist(), [], [])
        return RawSplit(files, labels)

    def _folder(self, root: Path | None) -> Path:
        if root is None:
            raise UserError("data=photos: set data.root to the folder with the photographs.")
        if not root.is_dir():
            raise UserError(f"data.root={root}: not a folder.")
        return root.resolve()


def _fingerprint(files: Sequence[Path]) -> str:
    # The time of the last change of content or status: the other one can be set back.
    return repr([(str(p), stat.st_size, stat.st_ctime_ns) for p in files for stat in [p.stat()]])


def _print_contents(
    folder: Path, split: str, labels: list[int], class_names: list[str], skipped: list[Path]
) -> None:
    """Prints what was found in a folder, and what is not used."""
    counts = Counter(labels)
    classes = ", ".join(f"{name} {counts[i]}" for i, name in enumerate(class_names[:20]))
    total = len(labels) - len(skipped)
    found = f"{total} images" + (f" in {len(class_names)} classes ({classes})" if classes else "")
    print(f"{folder}: {found}, {split} split.")
    if skipped:
        names = ", ".join(file.name for file in skipped[:5])
        print(f"Skipped {len(skipped)} images outside of the class folders: {names}.")
    others = [file for file in _files(folder) if file.suffix.lower() not in IMAGE_SUFFIXES]
    unknown = Counter(str(file.parent.relative_to(folder) / f"*{file.suffix}") for file in others)
    for pattern, count in sorted(unknown.items())[:20]:
        print(f"Skipped {count} files {pattern}: expected {', '.join(IMAGE_SUFFIXES)}.")


class HuggingFaceSource(ImageSource):
    """A dataset of the Hugging Face Hub, or a local folder of Parquet files or images.

    The images are the first column of images. The classes are the first column of class labels, or
    of the name `label` or `labels`; without one there are no classes. A split named validation
    serves as test split if there is no other. `path` and `subset` are arguments of
    `datasets.load_dataset`.
    """

    can_change = True

    def __init__(self, path: str, subset: str | None = None) -> None:
        self.path = path
        self.subset = subset
        self.name = f"hf-{re.sub(r'[^A-Za-z0-9_]+', '-', path).strip('-')}"

    def fingerprint(self, split: SplitName, root: Path | None) -> str | None:
        table = self._splits.get(split)
        return None if table is None else repr([file["filename"] for file in table.cache_files])

    def load(self, split: SplitName, root: Path | None) -> RawSplit:
        table = self._splits[split]
        types = {type(feature).__name__: name for name, feature in [*table.features.items()][::-1]}
        if "Image" not in types:
            columns = ", ".join(table.column_names)
            raise UserError(f"data.source.path={self.path}: no images in its columns {columns}.")
        named = [name for name in ("label", "labels") if _has_class_values(table.features, name)]
        images, label = types["Image"], types.get("ClassLabel", named[0] if named else None)
        encoded = table.cast_column(images, type(table.features[images])(decode=False))
        files = encoded[images]
        if label is None:
            return RawSplit(files, np.full(len(table), -1))
        if "ClassLabel" in types:
            class_names = tuple(table.features[label].names)
            index: dict[Any, int] = {i: i for i in range(len(class_names))}
        else:  # numbers or text
            known = sorted({value for value in self._splits["train"][label] if value is not None})
            class_names = tuple(str(value) for value in known)
            index = {value: i for i, value in enumerate(known)}
        labels = [index.get(value, -1) for value in table[label]]
        return RawSplit(files, np.array(labels, dtype=np.int64), class_names)

    @cached_property
    def _splits(self) -> dict[str, Any]:
        """Tables on disk (datasets.Dataset) by split."""
        import datasets as huggingface

        try:
            splits = huggingface.load_dataset(self.path, self.subset)
        except (OSError, RuntimeError, ValueError, huggingface.exceptions.DatasetsError) as error:
            raise UserError(f"data.source.path={self.path}: cannot load it ({error}).") from error
        if "train" not in splits:
            raise UserError(f"data.source.path={self.path}: no split train in {[*splits]}.")
        test = splits.get("test", splits.get("validation"))
        return {"train": splits["train"]} | ({} if test is None else {"test": test})


def _has_class_values(features: Any, name: str) -> bool:
    """Whether a column has text, whole numbers or booleans: not a mask or a list of labels."""
    dtype = getattr(features.get(name), "dtype", None)
    return isinstance(dtype, str) and dtype.startswith(
        ("string", "large_string", "int", "uint", "bool")
    )


def find_images(folder: Path) -> list[Path]:
    """All image files below a folder, sorted; links are followed, hidden files are not listed."""
    return sorted(path for path in _files(folder) if path.suffix.lower() in IMAGE_SUFFIXES)


def _files(folder: Path) -> Iterator[Path]:
    """All files below a folder that are not hidden; links to a folder above are not followed."""
    above: set[str] = set()
    for directory, folders, names in os.walk(folder, followlinks=True):
        above.add(os.path.realpath(directory))
        path = Path(directory)
        folders[:] = [
            each
            for each in folders
            if not _is_hidden(path / each) and os.path.realpath(path / each) not in above
        ]
        yield from (
            path / each for each in names if not each.startswith(".") and (path / each).is_file()
        )


def _is_hidden(folder: Path) -> bool:
    return folder.name.startswith((".", "__MACOSX", "@eaDir"))


def read_image(file: ImageFile, name: str | None = None) -> Tensor:
    """Reads an image file as uint8 (C, H, W), C = 1 or 3.

    The EXIF orientation is applied, transparency is composed on white, 16-bit values are scaled to
    8 bits, and float values must be in [0, 1]. Of an animation the first frame is read. A file that
    cannot be decoded or exceeds Pillow's pixel limit is a UserError, in which `name` replaces the
    path.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # warnings about metadata
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            encoded = isinstance(file, dict) and file["bytes"]
            path = file["path"] if isinstance(file, dict) else file
            if not encoded and Path(path).exists() and not Path(path).is_file():
                raise ValueError("not a regular file")
            with Image.open(BytesIO(encoded) if encoded else path, formats=FORMATS) as opened:
                array = _to_uint8(opened)
                array = oriented(array, _orientation(opened))
    except Exception as error:  # Pillow raises many types for damaged files
        raise UserError(f"Cannot read {name or file}: {error}") from error
    return torch.from_numpy(array if array.ndim == 3 else array[..., None]).permute(2, 0, 1)


def _orientation(image: Image.Image) -> int:
    """The EXIF orientation; damaged EXIF data have none."""
    try:
        return int(image.getexif().get(ExifTags.Base.Orientation, 1))
    except Exception:  # noqa: BLE001 - Pillow raises many types
        return 1


def oriented(array: np.ndarray, orientation: int) -> np.ndarray:
    """Applies an EXIF orientation (1: none) to (H, W) or (H, W, 3)."""
    if orientation in (5, 6, 7, 8):
        array = array.swapaxes(0, 1)
    if orientation in (3, 4, 7, 8):
        array = array[::-1]
    if orientation in (2, 3, 6, 7):
        array = array[:, ::-1]
    return array.copy()


def _to_uint8(image: Image.Image) -> np.ndarray:
    """uint8 (H, W) or (H, W, 3) from an image of any mode."""
    if image.mode == "F":
        values = np.asarray(image)
        if not (values >= 0).all() or not (values <= 1).all():
            raise ValueError(f"float values from {values.min():g} to {values.max():g}, not [0, 1]")
        unit: np.ndarray = np.rint(values * 255).astype(np.uint8)
        return unit
    if image.mode.startswith("I"):  # 16 bits; Pillow's own conversion clips at 255
        wide = np.asarray(image, np.int64)
        is_32_bit = image.format == "TIFF" and image.mode == "I"
        if is_32_bit or wide.min() < 0 or wide.max() > 65_535:
            raise ValueError("32-bit integers, expected 8 or 16 bits, or float in [0, 1]")
        key = image.info.get("transparency")
        array = np.rint(wide / 257).astype(np.uint8)
        array[wide == key] = 255
        return array
    mode = "L" if image.mode in ("1", "L", "LA", "La") else "RGB"
    if image.mode in ("LA", "PA", "RGBA", "RGBa", "La") or "transparency" in image.info:
        white = Image.new("RGBA", image.size, "white")
        image = Image.alpha_composite(white, image.convert("RGBA"))
    return np.array(image.convert(mode))
