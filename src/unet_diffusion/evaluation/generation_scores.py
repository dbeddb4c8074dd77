"""Images from a run or from files, and their scores against the real images of a dataset."""

import zipfile
import zlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from unet_diffusion.data.cache import resize
from unet_diffusion.data.datamodule import ImageDataModule, ImageDataset
from unet_diffusion.data.image_folder import find_images, read_image
from unet_diffusion.diffusion.guidance import NULL_LABEL
from unet_diffusion.diffusion.noise import seeded_noise
from unet_diffusion.evaluation.feature_extractor import FeatureExtractor
from unet_diffusion.evaluation.generation_metrics import (
    METRIC_FORMATS,
    generation_metrics,
    memorization,
    nearest,
)
from unet_diffusion.generation.pipeline import Pipeline, sample_images
from unet_diffusion.images import to_float, to_uint8

_BASELINE_SUBSETS = 5
_CHUNK = 2000


@dataclass(frozen=True)
class Samples:
    """A set of images and how they were made."""

    images: Tensor
    """uint8 (N, C, H, W)."""
    labels: Tensor
    """Class that each was generated with (N,), -1 for none."""
    settings: dict[str, Any]
    """Those of `generate_samples`, as in evaluation.json; of files `source` alone."""


def generate_samples(
    pipeline: Pipeline, label: str | int, num_samples: int, seed: int, batch_size: int
) -> Samples:
    """Generates images from the noise of a seed; see `class_labels`."""
    labels = pipeline.labels(label, num_samples)
    eps = seeded_noise(seed, range(num_samples), pipeline.run.image_shape)
    output = sample_images(
        pipeline.cfg_denoiser,
        pipeline.sampler,
        eps,
        labels,
        seed=seed,
        batch_size=batch_size,
        device=pipeline.device,
    )
    settings = {
        "source": f"run {pipeline.run.path.name}",
        "checkpoint": pipeline.checkpoint.name,
        "weights": pipeline.weights,
        "sampler": pipeline.sampler_name,
        "nfe": output.nfe,
        "label": "none" if labels is None else str(label),
        "guidance_scale": pipeline.cfg_denoiser.guidance_scale,
        "seed": seed,
    }
    no_labels = torch.full((num_samples,), NULL_LABEL)
    return Samples(to_uint8(output.images), no_labels if labels is None else labels, settings)


def load_samples(path: Path, image_shape: tuple[int, int, int], num_samples: int | None) -> Samples:
    """Reads the images below a folder, or of an .npz in the format of sample.py.

    Args:
        path: the folder; or the archive with uint8 (N, H, W, C) in arr_0, and optionally labels
            (N,) in arr_1.
        image_shape: (C, H, W) that the images are resized to.
        num_samples: size of a random but reproducible subset; None: all.
    """
    found: Sequence[Path | Tensor]
    if path.suffix == ".npz":
        found, labels = _read_archive(path)
    else:
        found = find_images(path)
        labels = np.full(len(found), NULL_LABEL)
    if len(found) < max(1, num_samples or 0):
        raise ValueError(
            f"images={path}: {len(found)} images found, num_samples={num_samples} requested. "
            f"Use num_samples=null for all."
        )
    chosen = np.sort(np.random.default_rng(0).permutation(len(found))[:num_samples])
    originals = [
        read_image(each) if isinstance(each, Path) else each for each in (found[i] for i in chosen)
    ]
    images = torch.cat([resize(each[None], image_shape[1:], image_shape[0]) for each in originals])
    sizes = sorted({f"{each.shape[-2]}x{each.shape[-1]}" for each in originals})
    source = f"{path} ({sizes[0] if len(sizes) == 1 else 'several sizes'})"
    return Samples(images, torch.from_numpy(labels[chosen]), {"source": source})


def _read_archive(path: Path) -> tuple[list[Tensor], np.ndarray]:
    """Images (C, H, W) and labels (N,) of an .npz."""
    try:
        with np.load(path) as content:
            images = content["arr_0"]
            labels = content["arr_1"] if "arr_1" in content else np.full(len(images), NULL_LABEL)
            labels = labels.astype(np.int64)
    except (OSError, ValueError, KeyError, EOFError, TypeError, zipfile.BadZipFile) as error:
        raise ValueError(f"images={path}: not an .npz with images in arr_0 ({error}).") from error
    if images.dtype != np.uint8 or images.ndim != 4 or images.shape[3] not in (1, 3):
        found = f"{images.dtype} {list(images.shape)}"
        raise ValueError(f"images={path}: arr_0 is {found}, expected uint8 (N, H, W, 1 or 3).")
    if labels.shape != images.shape[:1]:
        raise ValueError(
            f"images={path}: arr_1 is {list(labels.shape)}, expected ({len(images)},)."
        )
    return list(torch.from_numpy(images).permute(0, 3, 1, 2)), labels


class GenerationScorer:
    """Compares sets of images with the test split of a dataset, and with its training split.

    What depends on the real images alone is computed once, with the first score.

    Args:
        datamodule: the dataset, set up.
        extractor: its features are compared.
        num_samples: number of images in a set; enough for a covariance of the features, and at most
            that of the training images, for the real baseline.
    """

    def __init__(
        self, datamodule: ImageDataModule, extractor: FeatureExtractor, num_samples: int
    ) -> None:
        self.datamodule = datamodule
        self.extractor = extractor
        self.num_samples = num_samples
        self.train, self.test = datamodule.splits["train"], datamodule.splits["test"]
        minimum = max(200, 2 * extractor.num_features)
        if not minimum <= num_samples <= len(self.train) or len(self.test) < minimum:
            raise ValueError(
                f"num_samples={num_samples}: expected {minimum} (for {extractor.num_features} "
                f"features) to {len(self.train)} (the training images, for the real baseline), and "
                f"{minimum} test images (there are {len(self.test)}). Use num_samples=0 for none."
            )

    @cached_property
    def _real_features(self) -> tuple[Tensor, Tensor]:
        """Features of the training and the test images."""
        train, test = (
            torch.cat([self.extractor.features(chunk) for chunk in _chunks(split)])
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
    def _held_out_distances(self) -> dict[str, Tensor]:
        chosen = np.random.default_rng(0).permutation(len(self.test))[: self.num_samples]
        features = self._real_features[1][torch.from_numpy(chosen)]
        return self._distances(self.test.uint8(chosen), features)[0]

    def score(self, samples: Samples) -> tuple[dict[str, Any], Tensor]:
        """Scores images.

        Returns:
            `generation` of evaluation.json: metrics against the test images; the same of as many
            training images (mean and standard deviation over disjoint subsets; no deviation of
            one); class accuracy, None without labels or if the feature extractor has other classes;
            memorization by distance in `pixels` and in `features`; and what they depend on.
            Then uint8 images (16, C, H, W): the eight generated images that are closest to a
            training image, followed by these training images.
        """
        features = self.extractor.features(samples.images)
        test_features = self._real_features[1]
        distances, indices = self._distances(samples.images, features)
        baselines = self._baselines.items()
        has_std = self.num_samples * 2 <= len(self.train)
        height, width = self.datamodule.image_size
        name = self.datamodule.source.name
        scores = {
            "metrics": generation_metrics(features, test_features),
            "real_baseline": {name: float(np.mean(values)) for name, values in baselines},
            "real_baseline_std": {name: float(np.std(values, ddof=1)) for name, values in baselines}
            if has_std
            else None,
            "class_accuracy": self._class_accuracy(features, samples.labels),
            "real_class_accuracy": self._class_accuracy(test_features, self.test.labels),
            "memorization": {
                space: memorization(distances[space], held_out)
                for space, held_out in self._held_out_distances.items()
            },
            "num_samples": len(samples.images),
            "reference": f"test split of {name}, {len(self.test)} images at {height}x{width}",
            "reference_hash": f"{zlib.crc32(test_features.numpy().tobytes()):08x}",
            "feature_extractor": self.extractor.name,
            "settings": samples.settings,
        }
        closest = distances["pixels"].argsort()[:8]
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

    def _distances(self, images: Tensor, features: Tensor) -> tuple[dict[str, Tensor], Tensor]:
        """Distances to the nearest training image, and the index of that in pixels."""
        in_pixels, indices = self.nearest_training_images(images)
        in_features, _ = nearest(features, torch.split(self._real_features[0], _CHUNK))
        return {"pixels": in_pixels, "features": in_features}, indices

    def _class_accuracy(self, features: Tensor, labels: Tensor) -> float | None:
        names = self.extractor.class_names
        if not names or names != self.datamodule.class_names or (labels < 0).all():
            return None
        return self.extractor.accuracy(features, labels)


def _chunks(split: ImageDataset) -> Iterator[Tensor]:
    """The uint8 images (., C, H, W) of a split, which may be larger than the memory."""
    return (split.uint8(slice(i, i + _CHUNK)) for i in range(0, len(split), _CHUNK))


def _pixels(images: Tensor) -> Tensor:
    return to_float(images).flatten(1)
