"""Feature extractors: networks whose features generation metrics compare.

The one for Fashion-MNIST is part of the package. scripts/train_features.py trains others, on real
training images alone.
"""

import hashlib
import itertools
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import torch
import torch.nn.functional as F
from omegaconf import OmegaConf
from pydantic import Field, PositiveFloat, PositiveInt, validate_call
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save
from torch import Tensor, nn
from torchmetrics.image.fid import NoTrainInceptionV3
from torchvision.transforms.v2 import RGB

from unet_diffusion.config import STRICT, build_datamodule
from unet_diffusion.data.cache import resize
from unet_diffusion.runs import write_atomically

PACKAGED = "fashion_mnist_features.safetensors"
PACKAGED_DATASETS = ("fashion_mnist", "fashion_mnist_mini")
_METADATA_KEY = "unet_diffusion"
_SMALL = (16, 16)  # pixels; the default size of runs


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
        raise ValueError(f"features=auto: expected Fashion-MNIST, not {dataset}.")
    return _load_trained(Path(__file__).with_name(PACKAGED))


def _load_trained(path: Path) -> FeatureExtractor:
    try:
        with safe_open(path, framework="pt") as file:
            metadata = json.loads((file.metadata() or {})[_METADATA_KEY])
        class_names = tuple(str(name) for name in metadata["classes"])
        network = FeatureNetwork(len(class_names), metadata["channels"], metadata["size"])
        network.load_state_dict(load_file(path))
    except (OSError, SafetensorError, KeyError, TypeError, ValueError, RuntimeError) as error:
        reason = str(error).splitlines()[0]
        raise ValueError(f"features={path}: not a file of train_features.py ({reason}).") from error
    name = f"{path.stem}-{hashlib.sha256(path.read_bytes()).hexdigest()[:12]}"
    return FeatureExtractor(network.eval().requires_grad_(False), name, class_names)


def _load_inception() -> FeatureExtractor:
    """Inception v3 with the weights that published Frechet distances use; 2,048 features."""
    try:
        network = NoTrainInceptionV3("inception-v3-compat", ["2048"])
    except (OSError, RuntimeError) as error:
        raise ValueError(f"features=inception: cannot download the weights ({error}).") from error
    rgb_network = nn.Sequential(RGB(), network).eval()
    return FeatureExtractor(rgb_network, "inception-v3-compat", num_features=2048, batch_size=32)


@validate_call(config=STRICT)
def train_features(
    data: dict[str, Any],
    output: Annotated[str, Field(pattern=r"\.safetensors$")],
    size: Annotated[int, Field(ge=8, le=512)],
    epochs: PositiveInt,
    batch_size: PositiveInt,
    lr: PositiveFloat,
    seed: Annotated[int, Field(ge=0)],
    cache_dir: str,
) -> Path:
    """Trains a classifier and writes it; see conf/train_features.yaml for the arguments."""
    path = Path(output).expanduser()
    torch.manual_seed(seed)
    data = {**data, "image_size": size, "batch_size": batch_size}
    datamodule = build_datamodule(OmegaConf.create({"data": data}))
    names = datamodule.class_names
    if len(names) < 2:
        raise ValueError(f"data={datamodule.source.name}: no classes. Use data.num_clusters=10.")
    train, val, test = (datamodule.splits[split] for split in ("train", "val", "test"))
    rows = np.argsort(np.concatenate([train.rows, val.rows]))  # in the order of the dataset
    images = torch.cat([train.uint8(slice(None)), val.uint8(slice(None))])[rows]
    labels = torch.cat([train.labels, val.labels])[rows]

    network = FeatureNetwork(len(names), datamodule.channels, size)
    network.to(memory_format=torch.channels_last)
    optimizer = torch.optim.AdamW(network.parameters(), weight_decay=0.05)
    num_batches = len(images) // batch_size
    lr_schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, lr, epochs * num_batches)
    for epoch in range(epochs):
        order = torch.randperm(len(images))[: num_batches * batch_size]
        for batch in torch.split(order, batch_size):
            x = images[batch]
            if torch.rand(()) < 0.5:  # runs often have small images
                x = resize(x, _SMALL, network.channels)
            loss = F.cross_entropy(network.last(network(x)), labels[batch], label_smoothing=0.05)
            optimizer.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call]
            optimizer.step()
            lr_schedule.step()
        print(f"epoch {epoch + 1} of {epochs}: loss {loss.item():.3f}", flush=True)

    extractor = FeatureExtractor(network.eval(), path.stem)
    accuracy = extractor.accuracy(extractor.features(test.uint8(slice(None))), test.labels)
    metadata = {"classes": list(names), "channels": network.channels, "size": size}
    metadata |= {"accuracy": accuracy, "data": datamodule.source.name}
    state = {name: value.contiguous() for name, value in network.state_dict().items()}
    write_atomically(path, save(state, metadata={_METADATA_KEY: json.dumps(metadata)}))
    print(f"Test accuracy {accuracy:.4f}. Saved to {path}.")
    return path
