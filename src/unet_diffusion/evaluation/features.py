"""The feature network: a small classifier of clothes, in whose features drawn images are compared with real ones.

Its weights come with the package; `scripts/train_features.py` makes them, from the real training images of Fashion-MNIST alone.
"""

import itertools
from functools import cache
from importlib.resources import as_file, files

import torch
import torch.nn.functional as F
from safetensors.torch import load_file
from torch import Tensor, nn

WEIGHTS = "fashion_mnist_features.safetensors"
_SIZE = 28


class FeatureNetwork(nn.Module):
    """Five convolutions, an average over the image, a layer of 64 features, and ten classes.

    Called with uint8 images (N, 1 or 3, H, W) of any size, which are made grey and scaled to 28 x 28, it answers with the 64
    features; `classes` with the logits.
    """

    def __init__(self) -> None:
        super().__init__()
        widths = (1, 24, 48, 64, 96, 96)
        layers: list[nn.Module] = []
        for i, (inputs, outputs) in enumerate(itertools.pairwise(widths)):
            layers += [nn.Conv2d(inputs, outputs, kernel_size=3, stride=2 if i in (0, 2) else 1, padding=1, bias=False)]
            layers += [nn.BatchNorm2d(outputs), nn.ReLU()]
        self.layers = nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(96, 64))
        self.last = nn.Linear(64, 10)

    def forward(self, images: Tensor) -> Tensor:
        """Features (N, 64)."""
        x = images.float().mean(dim=1, keepdim=True) / 127.5 - 1
        if x.shape[-2:] != (_SIZE, _SIZE):
            x = F.interpolate(x, size=(_SIZE, _SIZE), mode="bilinear", antialias=True, align_corners=False)
        features: Tensor = F.relu(self.layers(x))
        return features

    def classes(self, images: Tensor) -> Tensor:
        """Logits (N, 10) of Fashion-MNIST's classes."""
        logits: Tensor = self.last(self(images))
        return logits


@cache
def feature_network() -> FeatureNetwork:
    """The network that comes with the package, on the CPU, in eval mode."""
    network = FeatureNetwork()
    with as_file(files(__package__) / WEIGHTS) as path:
        network.load_state_dict(load_file(path))
    return network.eval().requires_grad_(False)


@torch.inference_mode()
def accuracy(network: FeatureNetwork, images: Tensor, label: Tensor, batch_size: int = 500) -> float:
    """Share of uint8 images (N, C, H, W) that are recognised as their label (N,)."""
    right = [
        (network.classes(part).argmax(dim=1) == told).sum()
        for part, told in zip(torch.split(images, batch_size), torch.split(label, batch_size), strict=True)
    ]
    return float(torch.stack(right).sum()) / len(images)
