import hashlib
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from helpers import Script

from unet_diffusion.data.datamodule import ImageDataModule
from unet_diffusion.evaluation.feature_extractor import load_feature_extractor

TRAIN = ("data=fashion_mnist_mini", "size=16")


def test_packaged_network_classifies_test_images(mini: ImageDataModule, extractor, real):
    assert sum(p.numel() for p in extractor.network.parameters()) == 183_986
    assert extractor.network.training is False
    assert extractor.name == "fashion_mnist_features-169fc8c2f382"
    assert len(extractor.class_names) == 10
    assert extractor.features(real[:2]).shape == (2, 64)
    assert extractor.accuracy(extractor.features(real), mini.splits["test"].labels) > 0.88


def test_accuracy_ignores_images_without_a_label(mini: ImageDataModule, extractor, real):
    features, labels = extractor.features(real[:50]), mini.splits["test"].labels[:50]
    unknown = labels.clone()
    unknown[20:] = -1
    expected = extractor.accuracy(features[:20], labels[:20])
    assert extractor.accuracy(features, unknown) == pytest.approx(expected)


def test_images_are_converted_to_channels_and_size_of_the_network(extractor, real: torch.Tensor):
    rgb = real[:5].expand(-1, 3, -1, -1)
    torch.testing.assert_close(extractor.features(rgb), extractor.features(real[:5]))
    large = F.interpolate(real[:50].float(), scale_factor=4, mode="bilinear", antialias=True)
    with torch.inference_mode():
        predicted = extractor.network.last(extractor.features(real[:50])).argmax(1)
    assert extractor.accuracy(extractor.features(large.round().to(torch.uint8)), predicted) > 0.9


def test_unusable_feature_extractor_raises(tmp_path: Path):
    (tmp_path / "broken.safetensors").write_bytes(b"12345678")
    for name in ("gone", "broken"):
        with pytest.raises(ValueError, match=r"features=.*: not a file of train_features"):
            load_feature_extractor(str(tmp_path / f"{name}.safetensors"), "cifar10")
    with pytest.raises(ValueError, match="features=auto: expected Fashion-MNIST, not cifar10"):
        load_feature_extractor("auto", "cifar10")


def test_training_is_reproducible(script: Script, tmp_path: Path, mini: ImageDataModule, real):
    for name in ("a", "b"):
        arguments = ("epochs=1", "batch_size=64", f"output={name}.safetensors")
        status, out, err = script("train_features", *TRAIN, *arguments)
        assert status == 0, err
    path = tmp_path / "a.safetensors"
    assert path.read_bytes() == (tmp_path / "b.safetensors").read_bytes()
    extractor = load_feature_extractor(str(path), "fashion_mnist_mini")
    assert extractor.class_names == mini.class_names
    assert extractor.name == f"a-{hashlib.sha256(path.read_bytes()).hexdigest()[:12]}"
    accuracy = extractor.accuracy(extractor.features(real), mini.splits["test"].labels)
    assert accuracy > 0.6
    assert f"Test accuracy {accuracy:.4f}" in out


def test_large_batch_is_all_images_and_invalid_arguments_raise(script: Script, tmp_path: Path):
    for override in ("output=own.pt", "epochs=0", "lr=-1"):
        status, _, err = script("train_features", TRAIN[0], override)
        assert (status, f"{override}: " in err) == (2, True)
    assert not list(tmp_path.glob("*.safetensors"))
    few = ("size=8", "epochs=1", "batch_size=100000", "output=a.safetensors")
    status, _, err = script("train_features", TRAIN[0], *few)
    assert status == 0, err
