from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from helpers import composed, real_images

from unet_diffusion.data.datamodule import ImageDataModule
from unet_diffusion.errors import UserError
from unet_diffusion.evaluation.evaluate import evaluate
from unet_diffusion.evaluation.feature_training import train_features
from unet_diffusion.evaluation.features import FeatureNetwork, judge_for, save_network


def test_a_network_comes_back_as_it_was_written(tmp_path: Path):
    torch.manual_seed(0)
    network = FeatureNetwork(classes=3, channels=3, size=20).eval()
    save_network(network, tmp_path / "colour.safetensors", ["a", "b", "c"], 0.5, "stamps")
    judge = judge_for(str(tmp_path / "colour.safetensors"), "stamps")
    images = torch.randint(0, 256, (5, 3, 24, 32), dtype=torch.uint8)
    with torch.inference_mode():
        torch.testing.assert_close(judge.features(images), network(images))
    assert (judge.class_names, judge.accuracy) == (("a", "b", "c"), 0.5)
    assert judge.name.startswith("colour-")
    other = FeatureNetwork(classes=3, channels=3, size=20)
    save_network(other, tmp_path / "colour.safetensors", ["a", "b", "c"], 0.5, "stamps")
    assert judge_for(str(tmp_path / "colour.safetensors"), "stamps").name != judge.name


def test_the_script_trains_one_that_tells_clothes_apart(
    script: Callable, tmp_path: Path, mini: ImageDataModule, generator: Path
):
    status, out, err = script(
        "train_features", "data=fashion_mnist_mini", "size=16", "epochs=4", "batch_size=64", "output=own.safetensors"
    )
    assert status == 0, err
    judge = judge_for(str(tmp_path / "own.safetensors"), "fashion_mnist_mini")
    label = torch.from_numpy(mini.splits["test"].cached.labels)
    probabilities = judge.probabilities(judge.features(real_images(mini, "test", None)))
    assert probabilities is not None
    right = (probabilities.argmax(1) == label).float().mean().item()
    assert right > 0.6
    assert judge.accuracy == pytest.approx(right, abs=0.02)
    assert f"test accuracy {judge.accuracy:.4f}" in out
    typed = (
        f"run={generator}",
        f"features={tmp_path / 'own.safetensors'}",
        "num_images=200",
        "levels=[]",
        f"output={tmp_path / 'scores'}",
    )
    assert evaluate(composed(*typed, config="evaluate"))["generation"]["feature_network"] == judge.name


@pytest.mark.parametrize(
    ("typed", "said"),
    [
        ("output=own.pt", "output=own.pt must end in .safetensors"),
        ("epochs=0", "epochs=0 must be"),
        ("batch_size=100000", "batch_size=100000 is larger than"),
        ("lr=-1", "lr=-1 must be"),
    ],
)
def test_what_cannot_be_trained_is_refused(script: Callable, tmp_path: Path, typed: str, said: str):
    status, _, err = script("train_features", "data=fashion_mnist_mini", typed)
    assert status == 2
    assert said in err
    assert not list(tmp_path.glob("*.safetensors"))


def test_the_training_is_the_same_each_time(tmp_path: Path):
    typed = ("data=fashion_mnist_mini", "size=16", "epochs=1", "batch_size=500")
    for name in ("a", "b"):
        train_features(composed(*typed, f"output={tmp_path / name}.safetensors", config="train_features"))
    assert (tmp_path / "a.safetensors").read_bytes() == (tmp_path / "b.safetensors").read_bytes()


def test_inceptions_weights_must_be_weights(tmp_path: Path):
    pytest.importorskip("torch_fidelity")
    (tmp_path / "weights.pth").write_bytes(b"no weights")
    with pytest.raises(UserError, match=r"features=.*weights\.pth: the weights cannot be had"):
        judge_for(str(tmp_path / "weights.pth"), "cifar10")
