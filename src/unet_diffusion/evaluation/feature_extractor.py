"""Feature extractors: networks whose features generation metrics compare.

The one for Fashion-MNIST is part of the package. scripts/train_features.py trains others, on real
training images alone.
"""

import hashlib
import itertools
import json
import pickle
from dataclasses import dataclass, replace
from importlib.resources import as_file, files
from pathlib import Path

import torch
import torch.nn.functional as F
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save
from torch import Tensor, nn
from torchmetrics.image.fid import NoTrainInceptionV3
from torchvision.transforms.v2 import RGB

PACKAGED = "fashion_mnist_features.safetensors"
PACKAGED_DATASETS = ("fashion_mnist", "fashion_mnist_mini")
_METADATA_KEY = "unet_diffusion"


class FeatureNetwork(nn.Module):
    """A classifier of five convolutions, global average pooling and 64 features.

    Maps uint8 images (N, 1 or 3, H, W) of any size to features (N, 64); images are converted to the
    size and channels of the network. `last` maps features to logits.

    Args:
        num_classes: at least 2.
        channels: 1 (grey) or 3 (colour).
        size: height and width of the network's input, in pixels.
    """

    def __init__(self, num_classes: int = 10, channels: int = 1, size: int = 28) -> None:
        super().__init__()
        self.channels = channels
        self.size = size
        layers: list[nn.Module] = []
        widths = itertools.pairwise((channels, 24, 48, 64, 96, 96))
        for (c_in, c_out), stride in zip(widths, (2, 1, 2, 1, 1), strict=True):
            layers += [
                nn.Conv2d(c_in, c_out, kernel_size=3, stride=stride, padding=1, bias=False),
                nn.BatchNorm2d(c_out),
                nn.ReLU(),
            ]
        layers += [nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(96, 64)]
        self.layers = nn.Sequential(*layers)
        self.last = nn.Linear(64, num_classes)

    def forward(self, images: Tensor) -> Tensor:
        """Features (N, 64)."""
        x = images.float() / 127.5 - 1
        x = x.mean(dim=1, keepdim=True) if self.channels == 1 else x.expand(-1, 3, -1, -1)
        if x.shape[-2:] != (self.size, self.size):
            x = F.interpolate(x, size=(self.size, self.size), mode="bilinear", antialias=True)
        return F.relu(self.layers(x))


@dataclass(frozen=True)
class FeatureExtractor:
    """A network with features and, if it is a classifier, classes."""

    network: nn.Module
    """Maps uint8 images (N, C, H, W) to features (N, D)."""
    name: str
    """Contains the start of the SHA-256 of the weights."""
    class_names: tuple[str, ...] = ()
    """Empty if it is not a classifier."""
    accuracy: float | None = None
    """On real test images."""
    num_features: int = 64
    batch_size: int = 500
    device: torch.device | str = "cpu"

    def to(self, device: torch.device) -> "FeatureExtractor":
        """The same with its network on a device."""
        self.network.to(device)
        return replace(self, device=device)

    @torch.inference_mode()
    def features(self, images: Tensor) -> Tensor:
        """Features (N, D) of uint8 images (N, C, H, W), on the CPU."""
        batches = torch.split(images, self.batch_size)
        return torch.cat([self.network(batch.to(self.device)).cpu() for batch in batches])

    @torch.inference_mode()
    def probabilities(self, features: Tensor) -> Tensor:
        """Class probabilities (N, K) from features (N, D); for classifiers only."""
        assert isinstance(self.network, FeatureNetwork)
        logits: Tensor = self.network.last(features.to(self.device))
        return logits.softmax(dim=1).cpu()


def load_feature_extractor(features: str, dataset: str) -> FeatureExtractor:
    """The feature extractor that `features=` selects.

    Args:
        features: `auto`: the one in the package; a .safetensors file of train_features.py;
            `inception`: Inception v3, downloaded by torch-fidelity; or a .pth file of its weights.
        dataset: name of the dataset.

    Raises:
        ValueError: the file cannot be read, or the packaged network was trained on another dataset.
    """
    if features == "inception" or features.endswith(".pth"):
        return _load_inception(None if features == "inception" else Path(features).expanduser())
    if features != "auto":
        return _load_trained(Path(features).expanduser())
    if dataset not in PACKAGED_DATASETS:
        raise ValueError(
            f"features=auto: the feature extractor in the package is trained on Fashion-MNIST, not "
            f"on {dataset}. Train one with python scripts/train_features.py data={dataset}, or use "
            f"features=inception."
        )
    with as_file(files(__package__) / PACKAGED) as path:
        return _load_trained(path)


def save_feature_network(
    network: FeatureNetwork, path: Path, class_names: list[str], accuracy: float, dataset: str
) -> None:
    """Writes a trained network with the metadata for `load_feature_extractor`."""
    metadata = {
        "classes": class_names,
        "channels": network.channels,
        "size": network.size,
        "accuracy": accuracy,
        "data": dataset,
    }
    state = {name: value.contiguous() for name, value in network.state_dict().items()}
    path.write_bytes(save(state, metadata={_METADATA_KEY: json.dumps(metadata)}))


def _load_trained(path: Path) -> FeatureExtractor:
    try:
        with safe_open(path, framework="pt") as file:
            metadata = json.loads((file.metadata() or {})[_METADATA_KEY])
        class_names = tuple(str(name) for name in metadata["classes"])
        network = FeatureNetwork(len(class_names), metadata["channels"], metadata["size"])
        network.load_state_dict(load_file(path))
        accuracy = float(metadata["accuracy"])
    except (OSError, SafetensorError, KeyError, TypeError, ValueError, RuntimeError) as error:
        reason = str(error).splitlines()[0]
        raise ValueError(
            f"features={path}: expected auto, inception or a file of train_features.py ({reason})."
        ) from error
    name = f"{path.stem}-{_short_hash(path)}"
    return FeatureExtractor(network.eval().requires_grad_(False), name, class_names, accuracy)


def _load_inception(path: Path | None) -> FeatureExtractor:
    """Inception v3 with the weights that published Frechet distances use; 2,048 features."""
    try:
        if path is not None:  # torch-fidelity would run code in the file
            torch.load(path, map_location="cpu", weights_only=True)
        weights = None if path is None else str(path)
        network = NoTrainInceptionV3("inception-v3-compat", ["2048"], weights)
    except ModuleNotFoundError as error:
        raise ValueError(
            "features=inception: torch-fidelity is not installed. "
            "Use pip install -e '.[inception]'."
        ) from error
    except (OSError, RuntimeError, KeyError, EOFError, pickle.UnpicklingError) as error:
        raise ValueError(
            f"features={path or 'inception'}: cannot load the weights "
            f"({str(error).splitlines()[0]}). "
            f"Use the file weights-inception-2015-12-05-6726825d.pth of torch-fidelity."
        ) from error
    name = "inception-v3-compat" if path is None else f"{path.stem}-{_short_hash(path)}"
    rgb_network = nn.Sequential(RGB(), network).eval()
    return FeatureExtractor(rgb_network, name, num_features=2048, batch_size=32)


def _short_hash(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()[:12]
