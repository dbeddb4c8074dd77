"""How near drawn images come to real ones: a Fréchet distance in features, and whether asked-for classes are recognised."""

import hashlib
from dataclasses import asdict, dataclass
from importlib.resources import files

import numpy as np
import torch
from torch import Tensor
from torchmetrics.image.fid import FrechetInceptionDistance

from unet_diffusion.data.datamodule import ImageDataModule
from unet_diffusion.evaluation.features import WEIGHTS, accuracy, feature_network

_BATCH = 500


@dataclass(frozen=True)
class GenerationScore:
    """A distance, with everything that it depends on."""

    frechet_distance: float
    """Between the drawn images and the reference; 0 for equal Gaussians of features."""
    floor: float
    """The same for as many real training images: what perfect images would score."""
    class_accuracy: float | None
    """Share of the drawn images recognised as the class asked for; None where none was."""
    images: int
    reference: str
    feature_network: str
    sampler: str
    """Its class with all of its arguments."""
    nfe: int
    label: str
    guidance: float
    seed: int
    weights: str

    def as_dict(self) -> dict[str, object]:
        return asdict(self)


class Reference:
    """Real images that drawn ones are compared with.

    Args:
        images: uint8 (N, C, H, W).
    """

    def __init__(self, images: Tensor) -> None:
        self._distance = FrechetInceptionDistance(
            feature=feature_network(), input_img_size=(1, 28, 28), reset_real_features=False
        )
        self._update(images, real=True)

    def frechet_distance(self, images: Tensor) -> float:
        """Fréchet distance between the Gaussians of the features of these uint8 images (N, C, H, W) and of the real ones.

        Heusel et al. 2017, "GANs Trained by a Two Time-Scale Update Rule", eq. 6, with this project's feature network in place
        of Inception. It falls as N grows: compare at equal N only.
        """
        self._distance.reset()  # of the images before these; the real ones stay
        self._update(images, real=False)
        return float(self._distance.compute())

    def _update(self, images: Tensor, real: bool) -> None:
        for first in range(0, len(images), _BATCH):
            self._distance.update(images[first : first + _BATCH], real=real)


def real_images(datamodule: ImageDataModule, split: str, count: int | None, seed: int = 0) -> Tensor:
    """`count` images of a split chosen at random, or all of them, as uint8 (N, C, H, W), never mirrored."""
    images = datamodule.splits[split]
    rows = images.rows if count is None else images.rows[np.random.default_rng(seed).permutation(len(images))[:count]]
    return torch.from_numpy(images.cached.images[rows]).permute(0, 3, 1, 2)


def class_accuracy(images: Tensor, label: Tensor | None) -> float | None:
    """Share of the uint8 images that have a label which is recognised; None where none has one."""
    if label is None or not bool((label >= 0).any()):
        return None
    return accuracy(feature_network(), images[label >= 0], label[label >= 0])


def feature_network_id() -> str:
    """The feature network's name and the beginning of its weights' SHA-256."""
    digest = hashlib.sha256((files(__package__) / WEIGHTS).read_bytes()).hexdigest()
    return f"{WEIGHTS.removesuffix('.safetensors')}-{digest[:12]}"
