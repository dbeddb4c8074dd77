import gzip
import shutil
import time
from pathlib import Path

import numpy as np
import pytest
from helpers import at_once, noting

from unet_diffusion.data import fashion_mnist
from unet_diffusion.data.fashion_mnist import CLASS_NAMES, FashionMNIST, FashionMNISTMini
from unet_diffusion.data.idx import read_idx
from unet_diffusion.data.torchvision_sets import CIFAR10, MNIST
from unet_diffusion.errors import UserError

IDX_NAMES = {"train": "train", "test": "t10k"}


def idx(array: np.ndarray) -> bytes:
    return b"\0\0\x08" + bytes([array.ndim]) + np.array(array.shape, ">i4").tobytes() + array.tobytes()


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Four IDX files, the test split gzipped."""
    root = tmp_path / "idx"
    root.mkdir()
    for number, prefix in enumerate(IDX_NAMES.values()):
        images = np.random.default_rng(number).integers(0, 256, (7 + number, 28, 28), dtype=np.uint8)
        for kind, array in (("images-idx3", images), ("labels-idx1", np.arange(len(images), dtype=np.uint8))):
            content = idx(array)
            (root / f"{prefix}-{kind}-ubyte{'.gz' * number}").write_bytes(gzip.compress(content) if number else content)
    return root


def test_the_embedded_images_are_the_first_of_the_real_ones():
    train, test = (FashionMNISTMini().open(split, None) for split in ("train", "test"))
    assert (len(train), len(test)) == (5000, 1000)
    assert train.labels[:10].tolist() == [9, 0, 0, 3, 0, 2, 7, 2, 5, 5]  # as published
    assert test.labels[:10].tolist() == [9, 2, 1, 1, 6, 1, 4, 6, 5, 7]
    assert train.class_names[9] == "ankle-boot"
    assert train.read(0, 1).sum().item() == 76_247  # the first boot
    assert set(train.labels) == set(range(10))


def test_system_copy_is_the_same_dataset():
    system = Path("/usr/share/datasets/fashion-mnist")
    if not system.is_dir():
        pytest.skip("Debian's dataset-fashion-mnist is not installed")
    whole, mini = FashionMNIST().open("test", None), FashionMNISTMini().open("test", None)
    assert len(whole) == 10_000
    assert whole.read(0, 1000).equal(mini.read(0, 1000))


def test_files_are_found_in_root_before_the_system(folder: Path, tmp_path: Path):
    source = FashionMNIST(system_root=str(tmp_path / "nowhere"))
    assert [len(source.open(split, folder)) for split in ("train", "test")] == [7, 8]
    assert len(FashionMNIST(system_root=str(folder)).open("test", None)) == 8
    assert source.open("train", folder).class_names == CLASS_NAMES


def test_torchvisions_layout_is_found_too(folder: Path, tmp_path: Path):
    raw = tmp_path / "root" / "FashionMNIST" / "raw"
    shutil.copytree(folder, raw)
    assert len(FashionMNIST(system_root="/nowhere").open("train", tmp_path / "root")) == 7


def test_processes_that_start_together_download_once(tmp_path: Path, folder: Path, monkeypatch: pytest.MonkeyPatch):
    def download(root: str, download: bool) -> None:
        for file in folder.iterdir():
            time.sleep(0.05)  # the others could take the first files for all of them
            shutil.copy(file, root)

    (tmp_path / "root").mkdir()
    monkeypatch.setattr(fashion_mnist, "TorchvisionFashionMNIST", noting(tmp_path / "notes", download))
    at_once(lambda: FashionMNIST(system_root="/nowhere").fingerprint("test", tmp_path / "root"))
    assert (tmp_path / "notes").read_text() == "done\n"


def test_where_nothing_works_the_three_remedies_are_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("torchvision.datasets.FashionMNIST.mirrors", ["http://127.0.0.1:9/"])  # nobody listens there
    with pytest.raises(UserError, match=r"data\.root=.*apt-get install dataset-fashion-mnist.*network"):
        FashionMNIST(system_root="/nowhere").open("train", tmp_path / "root")


def test_mnist_and_cifar10_say_what_to_do_without_a_network(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("torchvision.datasets.MNIST.mirrors", ["http://127.0.0.1:9/"])
    monkeypatch.setattr("torchvision.datasets.CIFAR10.url", "http://127.0.0.1:9/cifar-10-python.tar.gz")
    for source in (MNIST(), CIFAR10()):
        with pytest.raises(UserError, match=r"data\.root=.*download failed.*network connection"):
            source.open("train", tmp_path)
        with pytest.raises(UserError, match=r"data\.root="):
            source.open("train", None)


def test_mnist_files_that_are_there_are_read(tmp_path: Path, folder: Path):
    raw = tmp_path / "MNIST" / "raw"
    raw.mkdir(parents=True)
    for file in folder.iterdir():
        content = gzip.decompress(file.read_bytes()) if file.suffix == ".gz" else file.read_bytes()
        (raw / file.name.removesuffix(".gz")).write_bytes(content)
    split = MNIST().open("test", tmp_path)
    assert split.labels.tolist() == list(range(8))
    assert split.class_names[3] == "3" or split.class_names[3] == "three"
    assert np.array_equal(split.read(0, 8)[:, 0].numpy(), read_idx(raw / "t10k-images-idx3-ubyte"))


@pytest.mark.parametrize("damage", ["cut", "gzip cut", "not idx", "empty", "longer"])
def test_damaged_files_are_named(folder: Path, damage: str):
    plain, zipped = folder / "train-images-idx3-ubyte", folder / "t10k-images-idx3-ubyte.gz"
    content = plain.read_bytes()
    broken = {"cut": content[:-1], "not idx": b"hello" * 20, "empty": b"", "longer": content + b"x"}
    split = "test" if damage == "gzip cut" else "train"
    if damage == "gzip cut":
        zipped.write_bytes(zipped.read_bytes()[:-20])
    else:
        plain.write_bytes(broken[damage])
    with pytest.raises(UserError, match=r"idx3-ubyte.*fetch it again"):
        FashionMNIST(system_root="/nowhere").open(split, folder)
