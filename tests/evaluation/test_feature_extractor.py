from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F

from unet_diffusion.data.datamodule import ImageDataModule
from unet_diffusion.evaluation.feature_extractor import (
    FeatureExtractor,
    FeatureNetwork,
    load_feature_extractor,
    save_feature_network,
)
from unet_diffusion.evaluation.generation_metrics import class_accuracy

Script = Callable[..., tuple[int, str, str]]
TRAIN = ("data=fashion_mnist_mini", "size=16")


@pytest.fixture(scope="module")
def extractor() -> FeatureExtractor:
    return load_feature_extractor("auto", "fashion_mnist_mini")


@pytest.fixture(scope="module")
def real(mini: ImageDataModule) -> torch.Tensor:
    return mini.splits["test"].uint8(slice(None))


def test_packaged_network_loads(extractor: FeatureExtractor):
    assert sum(p.numel() for p in extractor.network.parameters()) == 183_986
    assert extractor.network.training is False
    assert extractor.name == "fashion_mnist_features-169fc8c2f382"
    assert len(extractor.class_names) == 10
    assert extractor.features(torch.zeros(2, 1, 16, 16, dtype=torch.uint8)).shape == (2, 64)


def test_packaged_network_classifies_test_images(mini: ImageDataModule, extractor, real):
    labels = mini.splits["test"].labels
    probabilities = extractor.probabilities(extractor.features(real))
    accuracy = class_accuracy(probabilities, labels)
    assert accuracy > 0.88
    assert accuracy == pytest.approx(extractor.accuracy, abs=0.03)


def test_images_are_converted_to_channels_and_size_of_the_network(extractor, real: torch.Tensor):
    rgb = real[:5].expand(-1, 3, -1, -1)
    torch.testing.assert_close(extractor.features(rgb), extractor.features(real[:5]))
    large = F.interpolate(real[:50].float(), scale_factor=4, mode="bilinear", antialias=True)
    predicted = [
        extractor.probabilities(extractor.features(images)).argmax(1)
        for images in (large.round().to(torch.uint8), real[:50])
    ]
    assert (predicted[0] == predicted[1]).float().mean() > 0.9


def test_saved_network_is_restored_and_named_by_its_weights(tmp_path: Path):
    torch.manual_seed(0)
    network = FeatureNetwork(num_classes=3, channels=3, size=20).eval()
    path = tmp_path / "colour.safetensors"
    save_feature_network(network, path, ["a", "b", "c"], 0.5, "stamps")
    restored = load_feature_extractor(str(path), "stamps")
    images = torch.randint(0, 256, (5, 3, 24, 32), dtype=torch.uint8)
    with torch.inference_mode():
        torch.testing.assert_close(restored.features(images), network(images))
    assert (restored.class_names, restored.accuracy) == (("a", "b", "c"), 0.5)
    assert restored.name.startswith("colour-")
    save_feature_network(FeatureNetwork(3, 3, 20), path, ["a", "b", "c"], 0.5, "stamps")
    assert load_feature_extractor(str(path), "stamps").name != restored.name


@pytest.mark.parametrize(
    ("content", "features", "message"),
    [
        (None, "auto", r"features=auto: .* not on cifar10\. Train one with .*data=cifar10"),
        (None, "gone.safetensors", "features=.*: expected auto, inception or a file"),
        (b"12345678", "broken.safetensors", "features=.*: expected auto, inception or a file"),
    ],
)
def test_unusable_feature_extractor_raises(tmp_path: Path, content, features: str, message: str):
    if features != "auto":
        path = tmp_path / features
        features = str(path)
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(ValueError, match=message):
        load_feature_extractor(features, "cifar10")


def test_inception_weights_that_contain_code_are_not_loaded(tmp_path: Path):
    torch.save(print, tmp_path / "weights.pth")
    with pytest.raises(ValueError, match=r"features=.*weights\.pth: cannot load the weights"):
        load_feature_extractor(str(tmp_path / "weights.pth"), "cifar10")


def test_script_trains_a_classifier(script: Script, tmp_path: Path, mini: ImageDataModule, real):
    arguments = (*TRAIN, "epochs=4", "batch_size=64", "output=own.safetensors")
    status, out, err = script("train_features", *arguments)
    assert status == 0, err
    extractor = load_feature_extractor(str(tmp_path / "own.safetensors"), "fashion_mnist_mini")
    probabilities = extractor.probabilities(extractor.features(real))
    accuracy = class_accuracy(probabilities, mini.splits["test"].labels)
    assert accuracy > 0.6
    assert extractor.accuracy == pytest.approx(accuracy, abs=0.02)
    assert f"Test accuracy {extractor.accuracy:.4f}" in out


def test_training_is_reproducible(script: Script, tmp_path: Path):
    for name in ("a", "b"):
        arguments = ("epochs=1", "batch_size=500", f"output={name}.safetensors")
        assert script("train_features", *TRAIN, *arguments)[0] == 0
    first, second = (tmp_path / f"{name}.safetensors" for name in ("a", "b"))
    assert first.read_bytes() == second.read_bytes()


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("output=own.pt", "output=own.pt: "),
        ("output=gone/own.safetensors", "output=gone/own.safetensors: the folder gone"),
        ("epochs=0", "epochs=0: "),
        ("batch_size=100000", "data.batch_size=100000: the training split has"),
        ("lr=-1", "lr=-1: "),
    ],
)
def test_invalid_training_arguments_are_reported(
    script: Script, tmp_path: Path, override: str, message: str
):
    status, _, err = script("train_features", "data=fashion_mnist_mini", override)
    assert status == 2
    assert message in err
    assert not list(tmp_path.glob("*.safetensors"))
