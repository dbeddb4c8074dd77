import gzip
from pathlib import Path

import numpy as np
import pytest

from unet_diffusion.data.sources import FashionMNISTMini, TorchvisionSource

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


@pytest.mark.parametrize("dataset", ["FashionMNIST", "MNIST", "CIFAR10"])
def test_failed_download_names_the_remedies(
    dataset: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    for name in ("FashionMNIST", "MNIST"):
        monkeypatch.setattr(f"torchvision.datasets.{name}.mirrors", ["http://127.0.0.1:9/"])
    monkeypatch.setattr("torchvision.datasets.CIFAR10.url", "http://127.0.0.1:9/cifar.tar.gz")
    source = TorchvisionSource(dataset)
    with pytest.raises(ValueError, match=r"(?s)data\.root=.*download failed.*network connection"):
        source.fingerprint("train", tmp_path)
    with pytest.raises(ValueError, match=r"set data\.root"):
        source.fingerprint("train", None)


def test_truncated_file_raises(folder: Path, tmp_path: Path):
    source = TorchvisionSource("MNIST", str(folder))
    source.load("train", tmp_path)
    file = tmp_path / "MNIST" / "raw" / "train-images-idx3-ubyte"
    file.write_bytes(file.read_bytes()[:-1])
    with pytest.raises(ValueError, match="data=mnist: "):
        source.load("train", tmp_path)
