"""Feature extractors: networks whose features generation metrics compare.

The one for Fashion-MNIST is part of the package. scripts/train_features.py trains others, on real
training images alone.
"""

import hashlib
import itertools
import json
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file
from torch import Tensor, nn
from torchmetrics.image.fid import NoTrainInceptionV3
from torchvision.transforms.v2 import RGB

from unet_diffusion.errors import UserError

PACKAGED = "fashion_mnist_features.safetensors"
PACKAGED_DATASETS = ("fashion_mnist", "fashion_mnist_mini")
METADATA_KEY = "unet_diffusion"


class FeatureNetwork(nn.Module):
    """A classifier of five convolutions, global average pooling and 64 features.

    Maps uint8 images (N, 1 or 3, H, W) of any size to features (N, 64); images are converted to
    `channels` (1 or 3) and to `size` pixels in height and width. `last` maps features to logits.
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

    network: nn.Module  # maps uint8 images (N, C, H, W) to features (N, D)
    name: str  # with the start of the SHA-256 of the weights
    class_names: tuple[str, ...] = ()  # empty if it is not a classifier
    num_features: int = 64
    batch_size: int = 500

    @torch.inference_mode()
    def features(self, images: Tensor) -> Tensor:
        """Features (N, D) of uint8 images (N, C, H, W), on the CPU."""
        device = next(self.network.parameters()).device
        batches = torch.split(images, self.batch_size)
        return torch.cat([self.network(batch.to(device)).cpu() for batch in batches])

    @torch.inference_mode()
    def accuracy(self, features: Tensor, labels: Tensor) -> float:
        """Fraction of correct predictions among features (N, D) with a label; for classifiers."""
        assert isinstance(self.network, FeatureNetwork)
        logits: Tensor = self.network.last(features.to(self.network.last.weight.device)).cpu()
        return float((logits.argmax(dim=1) == labels)[labels >= 0].float().mean())


def load_feature_extractor(features: str, dataset: str) -> FeatureExtractor:
    """The feature extractor that `features=` selects for a dataset.

    `auto`: the one in the package; `inception`: Inception v3, downloaded by torch-fidelity; or a
    .safetensors file of train_features.py.
    """
    if features == "inception":
        return _load_inception()
    if features != "auto":
        return _load_trained(Path(features).expanduser())
    if dataset not in PACKAGED_DATASETS:
        raise UserError(f"features=auto: expected Fashion-MNIST, not {dataset}.")
    return _load_trained(Path(__file__).with_name(PACKAGED))


def _load_trained(path: Path) -> FeatureExtractor:
    try:
        with safe_open(path, framework="pt") as file:
            metadata = json.loads((file.metadata() or {})[METADATA_KEY])
        class_names = tuple(str(name) for name in metadata["classes"])
        network = FeatureNetwork(len(class_names), metadata["channels"], metadata["size"])
        network.load_state_dict(load_file(path))
    except (OSError, SafetensorError, KeyError, TypeError, ValueError, RuntimeError) as error:
        reason = str(error).splitlines()[0]
        raise UserError(f"features={path}: not a file of train_features.py ({reason}).") from error
    name = f"{path.stem}-{hashlib.sha256(path.read_bytes()).hexdigest()[:12]}"
    return FeatureExtractor(network.eval().requires_grad_(False), name, class_names)


def _load_inception() -> FeatureExtractor:
    """Inception v3 with the weights that published Frechet distances use; 2,048 features."""
    try:
        network = NoTrainInceptionV3("inception-v3-compat", ["2048"])
    except (OSError, RuntimeError) as error:
        raise UserError(f"features=inception: cannot download the weights ({error}).") from error
    rgb_network = nn.Sequential(RGB(), network).eval()
    return FeatureExtractor(rgb_network, "inception-v3-compat", num_features=2048, batch_size=32)
