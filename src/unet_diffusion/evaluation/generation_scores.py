"""Scores of generated images against the real images of a dataset, and what they depend on."""

import zlib
from collections.abc import Iterator
from dataclasses import astuple, dataclass
from functools import cached_property

import numpy as np
import torch
from torch import Tensor

from unet_diffusion.data.datamodule import ImageDataModule, ImageDataset
from unet_diffusion.evaluation.feature_extractor import FeatureExtractor
from unet_diffusion.evaluation.generation_metrics import (
    GenerationMetrics,
    Memorization,
    class_accuracy,
    generation_metrics,
    memorization,
)
from unet_diffusion.evaluation.neighbors import nearest
from unet_diffusion.evaluation.samples import Samples
from unet_diffusion.images import to_float

_BASELINE_SUBSETS = 5
_CHUNK = 2000


@dataclass(frozen=True)
class GenerationScores:
    """Scores of a set of images, and everything that they depend on."""

    metrics: GenerationMetrics
    """Against the test images."""
    real_baseline: GenerationMetrics
    """The same for as many training images: mean over disjoint random subsets."""
    real_baseline_std: GenerationMetrics | None
    """Standard deviation over these subsets; None if there is only one."""
    class_accuracy: float | None
    """Fraction predicted as the class that they were generated with; None without labels."""
    real_class_accuracy: float | None
    """The same of the test images; None if the feature extractor has other classes."""
    memorization: dict[str, Memorization]
    """By distance in `pixels` and in `features`."""
    num_samples: int
    reference: str
    reference_hash: str
    """Differs if the test images differ."""
    feature_extractor: str
    source: str
    """The run or the files."""
    sampler: str | None
    nfe: int | None
    label: str | None
    guidance_scale: float | None
    seed: int | None
    weights: str | None


class GenerationScorer:
    """Compares sets of images with the test split of a dataset, and with its training split.

    What depends on the real images alone is computed once, with the first score.

    Args:
        datamodule: the dataset, set up.
        extractor: its features are compared.
        num_samples: number of images in a set.

    Raises:
        ValueError: there are too few images for a covariance of the features, or fewer training
            images than `num_samples`, so there is no real baseline.
    """

    def __init__(
        self, datamodule: ImageDataModule, extractor: FeatureExtractor, num_samples: int
    ) -> None:
        self.datamodule = datamodule
        self.extractor = extractor
        self.num_samples = num_samples
        self.train, self.test = datamodule.splits["train"], datamodule.splits["test"]
        names = extractor.class_names
        self._has_same_classes = len(names) > 0 and names == datamodule.class_names
        minimum = max(200, 2 * extractor.num_features)
        if not minimum <= num_samples <= len(self.train) or len(self.test) < minimum:
            raise ValueError(
                f"num_samples={num_samples}: expected {minimum} (for {extractor.num_features} "
                f"features) to {len(self.train)} (the training images, for the real baseline), and "
                f"{minimum} test images (there are {len(self.test)}). Use num_samples=0 for none."
            )

    @cached_property
    def _train_features(self) -> Tensor:
        return torch.cat([self.extractor.features(chunk) for chunk in _chunks(self.train)])

    @cached_property
    def _test_features(self) -> Tensor:
        return torch.cat([self.extractor.features(chunk) for chunk in _chunks(self.test)])

    @cached_property
    def _baselines(self) -> np.ndarray:
        """Metrics of disjoint subsets of the training images, (subsets, 5)."""
        shuffled = torch.from_numpy(np.random.default_rng(0).permutation(len(self.train)))
        count = min(_BASELINE_SUBSETS, len(self.train) // self.num_samples)
        subsets = torch.split(shuffled, self.num_samples)[:count]
        features = [self._train_features[subset] for subset in subsets]
        return np.array(
            [astuple(generation_metrics(each, self._test_features)) for each in features]
        )

    @cached_property
    def _held_out_distances(self) -> tuple[Tensor, Tensor]:
        """Distances of test images to the nearest training image, in pixels and in features."""
        chosen = np.random.default_rng(0).permutation(len(self.test))[: self.num_samples]
        features = self._test_features[torch.from_numpy(chosen)]
        in_pixels, _ = self.nearest_training_images(self.test.uint8(chosen))
        return in_pixels, nearest(features, torch.split(self._train_features, _CHUNK))[0]

    def score(self, samples: Samples) -> tuple[GenerationScores, Tensor]:
        """Scores the images.

        Returns:
            The scores, and uint8 images (16, C, H, W): the eight generated images that are closest
            to a training image, followed by these training images.
        """
        features = self.extractor.features(samples.images)
        distances, indices = self.nearest_training_images(samples.images)
        feature_distances, _ = nearest(features, torch.split(self._train_features, _CHUNK))
        real_distances, real_feature_distances = self._held_out_distances
        std = self._baselines.std(axis=0, ddof=1).tolist() if len(self._baselines) > 1 else None
        accuracy, real_accuracy = None, None
        if self._has_same_classes:
            probabilities = self.extractor.probabilities(features)
            accuracy = class_accuracy(probabilities, samples.labels)
            real_probabilities = self.extractor.probabilities(self._test_features)
            real_accuracy = class_accuracy(real_probabilities, self.test.labels)
        height, width = self.datamodule.image_size
        name = self.datamodule.source.name
        scores = GenerationScores(
            metrics=generation_metrics(features, self._test_features),
            real_baseline=GenerationMetrics(*self._baselines.mean(axis=0).tolist()),
            real_baseline_std=None if std is None else GenerationMetrics(*std),
            class_accuracy=accuracy,
            real_class_accuracy=real_accuracy,
            memorization={
                "pixels": memorization(distances, real_distances),
                "features": memorization(feature_distances, real_feature_distances),
            },
            num_samples=len(samples.images),
            reference=f"test split of {name}, {len(self.test)} images at {height}x{width}",
            reference_hash=f"{zlib.crc32(self._test_features.numpy().tobytes()):08x}",
            feature_extractor=self.extractor.name,
            **samples.settings,
        )
        closest = distances.argsort()[:8]
        training_images = self.train.uint8(indices[closest].numpy())
        return scores, torch.cat([samples.images[closest], training_images])

    def nearest_training_images(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Distance in pixel values in [-1, 1] to the nearest training image (N,), and its index.

        If training flips images at random, flipped ones count as well.
        """
        queries = [images, images.flip(-1)] if self.datamodule.flip else [images]
        training = (_pixels(chunk) for chunk in _chunks(self.train))
        distances, indices = nearest(_pixels(torch.cat(queries)), training)
        best = distances.reshape(len(queries), -1).min(dim=0)
        return best.values, indices.reshape(len(queries), -1).gather(0, best.indices[None])[0]


def _chunks(split: ImageDataset) -> Iterator[Tensor]:
    """The uint8 images (., C, H, W) of a split, which may be larger than the memory."""
    return (split.uint8(slice(i, i + _CHUNK)) for i in range(0, len(split), _CHUNK))


def _pixels(images: Tensor) -> Tensor:
    return to_float(images).flatten(1)
