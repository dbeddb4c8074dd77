"""Scores of generated images against the real images of a dataset.

The same images give a different Frechet distance with another number of images, feature extractor
or reference: compare at equal ones only. Distances between points are computed block by block, so
that no N x N matrix is held in memory.
"""

import zlib
from collections.abc import Iterable
from functools import cached_property
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torchmetrics.image.fid import FrechetInceptionDistance

from unet_diffusion.data.datamodule import ImageDataModule
from unet_diffusion.errors import UserError
from unet_diffusion.evaluation.feature_extractor import FeatureExtractor
from unet_diffusion.images import to_float

_BASELINE_SUBSETS = 5
_BLOCK = 1024
METRIC_FORMATS = {
    "frechet_distance": ".3f",  # between Gaussians fitted to the features; 0 for equal sets
    "precision": ".3f",  # fraction of the generated images on the manifold of the real ones
    "recall": ".3f",  # fraction of the real images on the manifold of the generated ones
}


def generation_metrics(features: Tensor, real: Tensor) -> dict[str, float]:
    """Compares the features (N, D) of generated images with those of real images (M, D).

    - Frechet distance: Heusel et al. 2017, "GANs Trained by a Two Time-Scale Update Rule", eq. 6.
    - Precision and recall: see `fraction_within`; of a random subset of the larger set, so that
      both have the same size.
    """
    features, real = features.double(), real.double()
    identity = nn.Identity()  # instead of an image network: its input is features
    identity.num_features = features.size(1)  # type: ignore[assignment]
    frechet_distance = FrechetInceptionDistance(identity)
    frechet_distance.update(real, real=True)
    frechet_distance.update(features, real=False)
    count = min(len(features), len(real))
    subset, real_subset = (
        points[np.random.default_rng(0).permutation(len(points))[:count]]
        for points in (features, real)
    )
    return {
        "frechet_distance": float(frechet_distance.compute()),
        "precision": fraction_within(subset, real_subset),
        "recall": fraction_within(real_subset, subset),
    }


def nearest(queries: Tensor, reference: Iterable[Tensor]) -> tuple[Tensor, Tensor]:
    """Euclidean distance (N,) from each query (N, D) to the nearest reference point, and its index.

    `reference` has consecutive blocks (., D) of the points, which may be read from disk.
    """
    distances = queries.new_full((len(queries),), float("inf"))
    indices = torch.zeros(len(queries), dtype=torch.int64)
    offset = 0
    for block in reference:
        for start in range(0, len(queries), _BLOCK):
            rows = slice(start, start + _BLOCK)
            index = torch.cdist(queries[rows], block).argmin(dim=1)
            # Again without the matrix product of cdist, whose rounding error hides exact copies.
            distance = (queries[rows] - block[index]).norm(dim=1)
            closer = distance < distances[rows]
            distances[rows] = torch.where(closer, distance, distances[rows])
            indices[rows] = torch.where(closer, index + offset, indices[rows])
        offset += len(block)
    return distances, indices


def radii(points: Tensor, k: int) -> Tensor:
    """Distance (N,) from each point (N, D) to the k-th nearest other point; N must exceed k."""
    blocks = torch.split(points, _BLOCK)
    # The nearest point is the point itself.
    return torch.cat([torch.cdist(part, points).kthvalue(k + 1).values for part in blocks])


def fraction_within(points: Tensor, centers: Tensor, k: int = 3) -> float:
    """Fraction of the points (N, D) within the radius of at least one center (M, D).

    Precision for generated points and real centers, recall for the reverse: Kynkäänniemi et al.
    2019, "Improved Precision and Recall Metric for Assessing Generative Models", eq. 1 and 2.
    """
    radius = radii(centers, k)
    blocks = torch.split(points, _BLOCK)
    within = [(torch.cdist(part, centers) <= radius).any(dim=1) for part in blocks]
    return float(torch.cat(within).double().mean())


def memorization(generated: Tensor, held_out: Tensor) -> dict[str, float]:
    """From the distances (N,) and (M,) of images to their nearest training image.

    Returns:
        Median distances `generated` and `held_out`; their `ratio`, about 1 for new, sharp images
        and lower for copies and blurred images; and `fraction_closer`, of the generated images that
        are closer than 99 % of the test images: 0.01 without copies.
    """
    median, reference = float(generated.median()), float(held_out.median())
    closer = float((generated < torch.quantile(held_out, 0.01)).float().mean())
    ratio = median / max(reference, 1e-12)
    return {"generated": median, "held_out": reference, "ratio": ratio, "fraction_closer": closer}


class GenerationScorer:
    """Compares sets of images with the test split of a dataset, and with its training split.

    What depends on the real images alone is computed once, with the first score. A set has
    `num_samples` images, at most as many as there are training images, for the real baseline.
    Without a feature extractor, memorization is the only score.
    """

    def __init__(
        self, datamodule: ImageDataModule, extractor: FeatureExtractor | None, num_samples: int
    ) -> None:
        self.datamodule = datamodule
        self.extractor = extractor
        self.train, self.test = datamodule.splits["train"], datamodule.splits["test"]
        self.num_samples = num_samples
        if extractor is None:
            self.num_samples = min(num_samples, len(self.train))
            return
        minimum = max(200, 2 * extractor.num_features)
        if not minimum <= num_samples <= len(self.train) or len(self.test) < minimum:
            raise UserError(
                f"num_samples={num_samples}: expected {minimum} (for {extractor.num_features} "
                f"features) to {len(self.train)} (the training images, for the real baseline), and "
                f"{minimum} test images (there are {len(self.test)}). Use num_samples=0 for none, "
                f"or, for images other than Fashion-MNIST, features=auto for memorization alone."
            )

    @cached_property
    def _real_features(self) -> tuple[Tensor, Tensor]:
        """Features of the training and the test images."""
        assert self.extractor is not None
        train, test = (
            torch.cat([self.extractor.features(chunk) for chunk in split.chunks()])
            for split in (self.train, self.test)
        )
        return train, test

    @cached_property
    def _baselines(self) -> dict[str, list[float]]:
        """Metrics of each of some disjoint random sets of training images."""
        train, test = self._real_features
        shuffled = torch.from_numpy(np.random.default_rng(0).permutation(len(train)))
        subsets = torch.split(shuffled, self.num_samples)[: len(train) // self.num_samples]
        metrics = [generation_metrics(train[rows], test) for rows in subsets[:_BASELINE_SUBSETS]]
        return {name: [each[name] for each in metrics] for name in METRIC_FORMATS}

    @cached_property
    def _held_out_distances(self) -> Tensor:
        chosen = np.random.default_rng(0).permutation(len(self.test))[: self.num_samples]
        return self.nearest_training_images(self.test.uint8(chosen))[0]

    def score(self, images: Tensor, labels: Tensor | None) -> tuple[dict[str, Any], Tensor]:
        """Scores uint8 images (N, C, H, W) that were generated with class labels (N,), if any.

        Returns:
            `generation` of evaluation.json: metrics against the test images; the same of as many
            training images (mean and standard deviation over disjoint subsets, None for a single
            one); class accuracy, None without labels or if the feature extractor has other classes;
            memorization by distance in pixels; and what they depend on. `metrics` is None, and
            what else depends on features is missing, without a feature extractor.
            Then uint8 images (16, C, H, W): the eight generated images that are closest to a
            training image, followed by these training images.
        """
        distances, indices = self.nearest_training_images(images)
        height, width = self.datamodule.image_size
        name = self.datamodule.source.name
        scores = {
            "metrics": None,
            "memorization": memorization(distances, self._held_out_distances),
            "num_samples": len(images),
            "reference": f"test split of {name}, {len(self.test)} images at {height}x{width}",
        }
        if self.extractor is not None:
            scores |= self._score_features(self.extractor, self.extractor.features(images), labels)
        closest = distances.argsort()[:8]
        training_images = self.train.uint8(indices[closest].numpy())
        return scores, torch.cat([images[closest], training_images])

    def _score_features(
        self, extractor: FeatureExtractor, features: Tensor, labels: Tensor | None
    ) -> dict[str, Any]:
        """The scores that depend on features (N, D)."""
        test_features = self._real_features[1]
        baselines = self._baselines.items()
        std = {name: float(np.std(each, ddof=1)) for name, each in baselines if len(each) > 1}
        is_comparable = extractor.class_names == self.datamodule.class_names

        def accuracy(features: Tensor, labels: Tensor | None) -> float | None:
            if labels is None or (labels < 0).all() or not is_comparable:
                return None
            return extractor.accuracy(features, labels)

        return {
            "metrics": generation_metrics(features, test_features),
            "real_baseline": {name: float(np.mean(values)) for name, values in baselines},
            "real_baseline_std": std or None,
            "class_accuracy": accuracy(features, labels),
            "real_class_accuracy": accuracy(test_features, self.test.labels),
            "reference_hash": f"{zlib.crc32(test_features.numpy().tobytes()):08x}",
            "feature_extractor": extractor.name,
        }

    def nearest_training_images(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Distance in pixel values in [-1, 1] to the nearest training image (N,), and its index.

        If training flips images at random, flipped ones count as well.
        """
        queries = [images, images.flip(-1)] if self.datamodule.flip else [images]
        training = (_pixels(chunk) for chunk in self.train.chunks())
        distances, indices = nearest(_pixels(torch.cat(queries)), training)
        best = distances.reshape(len(queries), -1).min(dim=0)
        return best.values, indices.reshape(len(queries), -1).gather(0, best.indices[None])[0]


def _pixels(images: Tensor) -> Tensor:
    return to_float(images).flatten(1)
