import gzip
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image, ImageOps

from unet_diffusion.data.cache import cached_split
from unet_diffusion.data.sources import (
    FashionMNISTMini,
    HuggingFaceSource,
    ImageFolder,
    TorchvisionSource,
    read_image,
)
from unet_diffusion.errors import UserError

SYSTEM_ROOT = Path("/usr/share/datasets/fashion-mnist")


def idx(array: np.ndarray) -> bytes:
    """The content of an IDX file."""
    shape = np.array(array.shape, ">i4").tobytes()
    return b"\0\0\x08" + bytes([array.ndim]) + shape + array.tobytes()


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Four gzipped IDX files with 7 training and 8 test images."""
    root = tmp_path / "idx"
    root.mkdir()
    for prefix, count in (("train", 7), ("t10k", 8)):
        images = np.random.default_rng(count).integers(0, 256, (count, 28, 28), dtype=np.uint8)
        arrays = {"images-idx3": images, "labels-idx1": np.arange(count, dtype=np.uint8)}
        for kind, array in arrays.items():
            (root / f"{prefix}-{kind}-ubyte.gz").write_bytes(gzip.compress(idx(array)))
    return root


def test_embedded_images_are_the_first_of_fashion_mnist():
    train, test = (FashionMNISTMini().load(split, None) for split in ("train", "test"))
    assert (train.images.shape, test.images.shape) == ((5000, 28, 28), (1000, 28, 28))
    assert train.labels[:10].tolist() == [9, 0, 0, 3, 0, 2, 7, 2, 5, 5]  # as published
    assert test.labels[:10].tolist() == [9, 2, 1, 1, 6, 1, 4, 6, 5, 7]
    assert train.class_names[9] == "ankle-boot"
    assert train.images[0].sum() == 76_247


def test_debian_package_is_the_same_dataset(tmp_path: Path):
    if not SYSTEM_ROOT.is_dir():
        pytest.skip("Debian's package dataset-fashion-mnist is not installed")
    full = TorchvisionSource("FashionMNIST", str(SYSTEM_ROOT)).load("test", tmp_path)
    mini = FashionMNISTMini().load("test", None)
    assert len(full.labels) == 10_000
    assert np.array_equal(full.images[:1000], mini.images)
    assert np.array_equal(full.labels[:1000], mini.labels)
    assert full.class_names == mini.class_names


@pytest.mark.parametrize("dataset", ["FashionMNIST", "MNIST"])
def test_gzipped_files_of_system_root_replace_a_download(
    dataset: str, folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    source = TorchvisionSource(dataset, str(folder))
    before = source.fingerprint("test", tmp_path)
    assert f"decompressing {folder}" in capsys.readouterr().out  # not silently
    split = source.load("test", tmp_path)
    assert split.labels.tolist() == list(range(8))
    expected = np.random.default_rng(8).integers(0, 256, (8, 28, 28), dtype=np.uint8)
    assert np.array_equal(split.images, expected)
    assert source.fingerprint("train", tmp_path) == before
    file = tmp_path / dataset / "raw" / "t10k-labels-idx1-ubyte"
    file.write_bytes(idx(np.zeros(8, np.uint8)))
    assert source.fingerprint("test", tmp_path) != before
    file.write_bytes(file.read_bytes()[:-1])
    with pytest.raises(ValueError, match=r"data=(fashion_)?mnist: "):
        source.load("test", tmp_path)


@pytest.mark.parametrize("dataset", ["FashionMNIST", "MNIST", "CIFAR10"])
def test_failed_download_names_the_remedies(dataset: str, tmp_path: Path, monkeypatch):
    for name in ("FashionMNIST", "MNIST"):
        monkeypatch.setattr(f"torchvision.datasets.{name}.mirrors", ["http://127.0.0.1:9/"])
    monkeypatch.setattr("torchvision.datasets.CIFAR10.url", "http://127.0.0.1:9/cifar.tar.gz")
    source = TorchvisionSource(dataset)
    with pytest.raises(ValueError, match=r"(?s)data\.root=.*download failed.*network connection"):
        source.fingerprint("train", tmp_path)
    with pytest.raises(ValueError, match=r"set data\.root"):
        source.fingerprint("train", None)


def test_all_modes_keep_their_brightness(tmp_path: Path):
    grey = np.array([[0, 51], [204, 255]], np.uint8)
    colour = Image.fromarray(np.stack([grey] * 3, -1))
    images = {
        "l.png": Image.fromarray(grey),
        "rgb.bmp": colour,
        "p.png": Image.fromarray(grey).convert("P"),
        "16bit.png": Image.fromarray(grey.astype(np.uint16) * 257),
        "la.png": Image.merge("LA", [Image.fromarray(grey), Image.new("L", (2, 2), 255)]),
        "cmyk.tiff": colour.convert("CMYK"),
        "lossless.webp": colour,
    }
    for name, image in images.items():
        image.save(tmp_path / name, **({"lossless": True} if name.endswith("webp") else {}))
        array = read_image(tmp_path / name).numpy()
        assert array.dtype == np.uint8
        assert np.array_equal(array, np.broadcast_to(grey, array.shape)), name
    Image.fromarray(grey).convert("1").save(tmp_path / "bits.png")
    assert set(read_image(tmp_path / "bits.png").flatten().tolist()) == {0, 255}


def test_transparency_is_composed_on_white(tmp_path: Path):
    for alpha, expected in ((0, [255, 255, 255]), (255, [200, 0, 0])):
        Image.new("RGBA", (1, 1), (200, 0, 0, alpha)).save(tmp_path / "red.png")
        assert read_image(tmp_path / "red.png").flatten().tolist() == expected
    Image.fromarray(np.array([[0, 70]], np.uint8)).save(tmp_path / "key.png", transparency=0)
    assert read_image(tmp_path / "key.png").tolist() == [[[255, 70]]]


def test_exif_orientation_is_applied(tmp_path: Path):
    file, exif = tmp_path / "rotated.png", Image.Exif()
    for exif[0x0112] in range(1, 9):
        Image.fromarray(np.array([[10, 20, 30], [40, 50, 60]], np.uint8)).save(file, exif=exif)
        expected = np.asarray(ImageOps.exif_transpose(Image.open(file)))
        assert np.array_equal(read_image(file)[0], expected)


def test_wide_pixels_are_read_exactly_or_raise(tmp_path: Path):
    grey = np.array([[0, 257, 300], [51 * 257, 65_535, 128]], np.uint16)
    Image.fromarray(grey).save(tmp_path / "16.tif")
    assert np.array_equal(read_image(tmp_path / "16.tif")[0], np.rint(grey / 257))
    Image.fromarray(grey).save(tmp_path / "key.png", transparency=300)
    assert read_image(tmp_path / "key.png")[0].tolist() == [[0, 1, 255], [51, 255, 0]]
    Image.fromarray((grey / 65_535).astype(np.float32)).save(tmp_path / "float.tif")
    assert np.array_equal(read_image(tmp_path / "float.tif")[0], np.rint(grey / 257))
    wide = {"int.tif": grey.astype(np.int32), "range.tif": grey.astype(np.float32)}
    wide["nan.tif"] = np.full((2, 2), np.nan, np.float32)
    for name, array in wide.items():
        Image.fromarray(array).save(tmp_path / name)
        with pytest.raises(UserError, match=f"Cannot read .*{name}: (32-bit integers|float)"):
            read_image(tmp_path / name)


def test_unreadable_files_are_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    (tmp_path / "text.png").write_text("hello")
    (tmp_path / "empty.png").touch()
    os.mkfifo(tmp_path / "pipe.png")
    Image.new("L", (64, 64)).save(tmp_path / "large.png")
    (tmp_path / "truncated.png").write_bytes((tmp_path / "large.png").read_bytes()[:50])
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 100)
    messages = {"pipe": "not a regular file", "large": ".*bomb"}
    for name in ("text", "empty", "truncated", "missing", "pipe", "large"):
        message = rf"^Cannot read .*{name}\.png: {messages.get(name, '')}"
        with pytest.raises(UserError, match=message):
            read_image(tmp_path / f"{name}.png")


def write_images(folder: Path, count: int, value: int = 0) -> None:
    folder.mkdir(parents=True)
    for i in range(count):
        Image.new("L", (20, 30), value + i).save(folder / f"{i:02d}.png")


def test_subfolders_are_classes(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    write_images(tmp_path / "cats" / "indoor", 2)
    write_images(tmp_path / "dogs", 3)
    split = ImageFolder().load("train", tmp_path)
    assert split.class_names == ("cats", "dogs")
    assert split.labels.tolist() == [0, 0, 1, 1, 1]
    Image.new("L", (4, 4)).save(tmp_path / "outside.PNG")
    (tmp_path / "dogs" / "phone.HEIC").touch()
    for name in (".ipynb_checkpoints/a.png", "__MACOSX/a.png", "cats/._a.png"):  # of other programs
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text("no image")
    write_images(tmp_path.parent / "store", 2)
    (tmp_path / "fish").symlink_to(tmp_path.parent / "store")
    (tmp_path / "cats" / "loop").symlink_to(tmp_path)
    capsys.readouterr()
    split = ImageFolder().load("train", tmp_path)
    assert split.class_names == ("cats", "dogs", "fish")
    assert split.labels.tolist() == [0, 0, 1, 1, 1, 2, 2]
    printed = capsys.readouterr().out
    assert "7 images in 3 classes (cats 2, dogs 3, fish 2), train split" in printed
    assert "1 images outside of the class folders: outside.PNG" in printed
    assert "*.HEIC: expected .png" in printed


@pytest.mark.parametrize("test", ["test", "val", "Test", "validation", "testing"])
def test_folders_train_and_test_or_val_are_the_splits(tmp_path: Path, test: str):
    write_images(tmp_path / "train", 4)
    assert ImageFolder().fingerprint("test", tmp_path) is None
    write_images(tmp_path / test, 2)
    (tmp_path / "train").rename(tmp_path / "Train")
    sizes = [len(ImageFolder().load(split, tmp_path).labels) for split in ("train", "test")]
    assert sizes == [4, 2]


def test_a_class_has_the_same_index_in_both_splits(tmp_path: Path):
    for name in ("train/a", "train/b", "train/c", "test/b", "test/c"):
        write_images(tmp_path / name, 1)
    train, test = (ImageFolder().load(split, tmp_path) for split in ("train", "test"))
    assert train.class_names == test.class_names == ("a", "b", "c")
    assert test.labels.tolist() == [1, 2]
    before = ImageFolder().fingerprint("test", tmp_path)
    assert ImageFolder().fingerprint("test", tmp_path) == before
    write_images(tmp_path / "train/aa", 1)  # moves the numbers of b and c
    changed = ImageFolder().fingerprint("test", tmp_path)
    Image.new("L", (9, 9)).save(tmp_path / "test/b/00.png")
    assert len({before, changed, ImageFolder().fingerprint("test", tmp_path)}) == 3


def test_unreadable_images_are_all_named(tmp_path: Path):
    images, cache = tmp_path / "images", tmp_path / "cache"
    write_images(images, 5, value=100)
    (images / "02.png").write_text("hello")
    (images / "04.png").write_bytes(b"")
    message = r"2 of 5 image files cannot be used, remove them: .*02\.png.*04\.png"
    with pytest.raises(ValueError, match=message):
        cached_split(ImageFolder(), "train", images, (8, 8), 1, cache)
    assert not any(path.is_dir() for path in cache.iterdir())


@pytest.fixture
def parquet_folder(tmp_path: Path) -> Path:
    """A folder with train.parquet and test.parquet: PNG images of two classes, as on the Hub."""
    datasets = pytest.importorskip("datasets")
    folder = tmp_path / "parquet"
    folder.mkdir()
    features = datasets.Features(
        name=datasets.Value("string"),
        image=datasets.Image(),
        label=datasets.ClassLabel(names=["Dark", "Bright / light"]),
    )
    for split, count in (("train", 6), ("test", 4)):
        labels = [index % 2 for index in range(count)]
        images = [Image.new("RGBA", (20, 10), (200 * label, 10, 0)) for label in labels]
        columns = {"name": [str(label) for label in labels], "image": images, "label": labels}
        table = datasets.Dataset.from_dict(columns, features=features)
        table.to_parquet(str(folder / f"{split}.parquet"))
    return folder


def test_huggingface_images_and_classes_are_those_of_the_table(
    parquet_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "hub")
    source = HuggingFaceSource(str(parquet_folder))
    split = cached_split(source, "train", None, (8, 8), 3, tmp_path / "cache")
    assert split is not None
    assert split.labels.tolist() == [0, 1, 0, 1, 0, 1]
    assert split.class_names == ("Dark", "Bright / light")
    pixels = split.read(np.arange(6))
    assert pixels.shape == (6, 3, 8, 8)
    assert pixels[:, :, 4, 4].tolist() == [[0, 10, 0], [200, 10, 0]] * 3
    test = cached_split(source, "test", None, (8, 8), 3, tmp_path / "cache")
    assert test is not None
    assert len(test.labels) == 4


@pytest.mark.parametrize(
    ("labels", "names", "expected"),
    [
        (["cat", None, "ant"], ("ant", "cat"), [1, -1, 0]),
        ([7, 3, 7], ("3", "7"), [1, 0, 1]),
        ([[1, 2], [3], [4]], (), [-1, -1, -1]),  # several labels per image: no classes
        ([0.5, 0.1, 0.7], (), [-1, -1, -1]),
    ],
)
def test_huggingface_labels_can_be_text_numbers_or_missing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, labels: list, names: tuple, expected: list
):
    datasets = pytest.importorskip("datasets")
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "hub")
    columns = {"image": [Image.new("L", (8, 8))] * 3, "label": labels}
    (tmp_path / "table").mkdir()
    datasets.Dataset.from_dict(columns).to_parquet(str(tmp_path / "table" / "train.parquet"))
    split = HuggingFaceSource(str(tmp_path / "table")).load("train", None)
    assert (split.class_names, split.labels.tolist()) == (names, expected)


def test_huggingface_dataset_that_cannot_be_trained_on_is_one_error(tmp_path: Path, monkeypatch):
    datasets = pytest.importorskip("datasets")

    def load(name: str, columns: dict[str, list[Any]]) -> None:
        table = datasets.Dataset.from_dict(columns)
        if "files" in name:
            table = table.cast_column("image", datasets.Image(decode=False))
        folder = tmp_path / name
        table.to_parquet(str(folder / f"{'test' if name == 'test' else 'train'}.parquet"))
        cached_split(HuggingFaceSource(str(folder)), "train", None, (4, 4), 1, tmp_path / "cache")

    with pytest.raises(ValueError, match="no images in its columns text"):
        load("text", {"text": ["a"]})
    with pytest.raises(ValueError, match=r"no split train in \['test'\]"):
        load("test", {"image": [Image.new("L", (4, 4))]})
    damaged = [{"bytes": b"no image", "path": None}, {"bytes": b"", "path": "gone.png"}]
    message = r"2 of 2 .* Cannot read image 0: .* Cannot read image 1: "
    with pytest.raises(ValueError, match=message):
        load("files", {"image": damaged})
    without_classes = HuggingFaceSource(str(tmp_path / "files")).load("train", None)
    assert without_classes.labels.tolist() == [-1, -1]
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(ValueError, match=r"data\.source\.path=user/images: cannot load it \("):
        HuggingFaceSource("user/images").fingerprint("train", None)
