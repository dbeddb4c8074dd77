"""Feature networks: small classifiers of real images, in whose features drawn images are compared with real ones.

The one for Fashion-MNIST comes with the package. `scripts/train_features.py` makes them, from real training images alone.
"""

import hashlib
import itertools
import json
import pickle
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.resources import as_file, files
from pathlib import Path

import torch
import torch.nn.functional as F
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save
from torch import Tensor, nn

from unet_diffusion.checks import whole_number
from unet_diffusion.errors import UserError, first_line
from unet_diffusion.images import to_uint8
from unet_diffusion.paths import named_path

PACKAGED = "fashion_mnist_features.safetensors"
LARGEST = 512
"""Of the sizes that a feature network can work at, in pixels."""
_KNOWN = ("fashion_mnist", "fashion_mnist_mini")


class FeatureNetwork(nn.Module):
    """Five convolutions, an average over the image, a layer of 64 features, and the classes.

    Called with uint8 images (N, 1 or 3, H, W) of any size, which are brought to its own colours and size, it answers with the
    64 features; its `last` layer turns these into logits.

    Args:
        classes: how many, 2 or more.
        channels: 1 (grey) or 3 (colour).
        size: height and width that it works at, in pixels, up to `LARGEST`.
    """

    def __init__(self, classes: int = 10, channels: int = 1, size: int = 28) -> None:
        super().__init__()
        self.channels = channels
        self.size = size
        widths = (channels, 24, 48, 64, 96, 96)
        layers: list[nn.Module] = []
        for i, (inputs, outputs) in enumerate(itertools.pairwise(widths)):
            layers += [nn.Conv2d(inputs, outputs, kernel_size=3, stride=2 if i in (0, 2) else 1, padding=1, bias=False)]
            layers += [nn.BatchNorm2d(outputs), nn.ReLU()]
        self.layers = nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(96, 64))
        self.last = nn.Linear(64, classes)

    def forward(self, images: Tensor) -> Tensor:
        """Features (N, 64)."""
        x = images.float() / 127.5 - 1
        x = x.mean(dim=1, keepdim=True) if self.channels == 1 else x.expand(-1, self.channels, -1, -1)
        if x.shape[-2:] != (self.size, self.size):
            x = F.interpolate(x, size=(self.size, self.size), mode="bilinear", antialias=True, align_corners=False)
        features: Tensor = F.relu(self.layers(x))
        return features


@dataclass(frozen=True)
class Judge:
    """What looks at images in place of a person: a network with features, and where it has them, classes."""

    network: nn.Module
    """uint8 images (N, C, H, W) to features (N, D)."""
    name: str
    """With the beginning of its weights' SHA-256."""
    class_names: tuple[str, ...]
    """Of its classes; empty where it has none."""
    accuracy: float | None
    """Share of real test images that it recognises."""
    width: int = 64
    """How many features an image has."""
    batch_size: int = 500
    """How many images it looks at at once."""

    @torch.inference_mode()
    def features(self, images: Tensor) -> Tensor:
        """(N, D) for images (N, C, H, W), uint8 or float in [-1, 1], which are looked at some at a time."""
        parts = torch.split(images, self.batch_size)
        return torch.cat([self.network(to_uint8(part) if part.is_floating_point() else part) for part in parts])

    @torch.inference_mode()
    def probabilities(self, features: Tensor) -> Tensor | None:
        """Of each class (N, K); None where it has none."""
        if not isinstance(self.network, FeatureNetwork):
            return None
        logits: Tensor = self.network.last(features)
        return logits.softmax(dim=1)


def knows(data: str) -> bool:
    """Whether the feature network that comes with the package was trained on such images."""
    return data in _KNOWN


def judge_for(asked: object, data: str) -> Judge:
    """The judge that `features=` names, for images of a dataset.

    Args:
        asked: `auto`: the one that comes with the package, where it knows the data; a .safetensors file that
            train_features.py has written; `inception`, whose weights torch-fidelity downloads; or a .pth file with those.
        data: the dataset's name.

    Raises:
        UserError: there is no such file or no judge for these images.
    """
    if asked in ("auto", None):
        if not knows(data):
            raise UserError(
                f"drawings of {data} cannot be scored by the feature network that comes along, as it knows Fashion-MNIST "
                f"alone: train one (python scripts/train_features.py data={data}) and name its file by features=, or take "
                f"features=inception"
            )
        with as_file(files(__package__) / PACKAGED) as path:
            return _trained_judge(path)
    path = named_path("features", asked)
    if asked == "inception" or path.suffix == ".pth":
        return _inception(None if asked == "inception" else path)
    if not path.is_file():
        raise UserError(
            f"features={asked} must be auto, inception, or a file: .safetensors of train_features.py, or .pth of Inception"
        )
    return _trained_judge(path)


def save_network(network: FeatureNetwork, path: Path, class_names: Sequence[str], accuracy: float, data: str) -> None:
    """Writes a trained network as safetensors, with what one must know about it; whole or not at all.

    Raises:
        OSError: it cannot be written.
    """
    facts = {
        "classes": list(class_names),
        "channels": network.channels,
        "size": network.size,
        "accuracy": accuracy,
        "data": data,
    }
    state = {name: value.contiguous() for name, value in network.state_dict().items()}
    content = save(state, metadata={"unet_diffusion": json.dumps(facts)})
    temporary = path.with_name(f".{path.name}.tmp")
    temporary.write_bytes(content)
    temporary.replace(path)


def _trained_judge(path: Path) -> Judge:
    try:
        with safe_open(path, framework="pt") as stream:
            facts = json.loads((stream.metadata() or {})["unet_diffusion"])
        classes, channels = [str(name) for name in facts["classes"]], whole_number("channels", facts["channels"], at_least=1)
        size = whole_number("size", facts["size"], at_least=8, at_most=LARGEST)
        network = FeatureNetwork(len(classes), channels, size)
        network.load_state_dict(load_file(path))
        accuracy = float(facts["accuracy"])
    except (OSError, SafetensorError, KeyError, TypeError, ValueError, RuntimeError) as error:  # RecursionError is one, too
        raise UserError(
            f"features={path} is no feature network ({first_line(error)}): name a file of train_features.py"
        ) from error
    digest = hashlib.sha256(path.read_bytes()).hexdigest()[:12]
    return Judge(network.eval().requires_grad_(False), f"{path.stem}-{digest}", tuple(classes), accuracy)


def _inception(path: Path | None) -> Judge:
    """Inception v3 with the weights that published Fréchet distances are taken with; 2,048 features."""
    if path is not None and not path.is_file():
        raise UserError(f"features={path} is no file: download Inception's weights of torch-fidelity, or take features=auto")
    try:
        if path is not None:
            torch.load(path, map_location="cpu", weights_only=True)  # torch-fidelity would run what code a file holds
        from torchmetrics.image.fid import NoTrainInceptionV3

        network = NoTrainInceptionV3("inception-v3-compat", ["2048"], None if path is None else str(path))
    except ModuleNotFoundError as error:
        raise UserError("features=inception needs the package torch-fidelity: pip install -e '.[inception]'") from error
    except pickle.UnpicklingError as error:
        raise UserError(
            f"features={path}: the weights cannot be had, as it holds more than plain data, and none of its code was run: "
            f"take features=auto"
        ) from error
    except Exception as error:
        raise UserError(
            f"features={path or 'inception'}: the weights cannot be had ({first_line(error)}): give the file "
            f"weights-inception-2015-12-05-6726825d.pth of torch-fidelity by features=, or take features=auto"
        ) from error

    class Colour(nn.Module):
        def forward(self, images: Tensor) -> Tensor:
            features: Tensor = network(images.expand(-1, 3, -1, -1))
            return features

    name = "inception-v3-compat" if path is None else f"{path.stem}-{hashlib.sha256(path.read_bytes()).hexdigest()[:12]}"
    return Judge(Colour().eval(), name, (), None, width=2048, batch_size=32)
