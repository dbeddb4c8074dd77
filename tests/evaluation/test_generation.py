import copy
import itertools

import numpy as np
import pytest
import torch

from unet_diffusion.data.datamodule import ImageDataModule
from unet_diffusion.evaluation.feature_extractor import FeatureExtractor, load_feature_extractor
from unet_diffusion.evaluation.generation_metrics import (
    GenerationMetrics,
    class_accuracy,
    generation_metrics,
)
from unet_diffusion.evaluation.generation_scores import GenerationScorer
from unet_diffusion.evaluation.samples import Samples

SETTINGS = ("source", "sampler", "nfe", "label", "guidance_scale", "seed", "weights")
PROBABILITIES = torch.tensor([[0.9, 0.1, 0.0], [0.6, 0.4, 0.0], [0.2, 0.8, 0.0], [0.7, 0.3, 0.0]])


@pytest.fixture(scope="module")
def extractor() -> FeatureExtractor:
    return load_feature_extractor("auto", "fashion_mnist_mini")


@pytest.fixture(scope="module")
def real(mini: ImageDataModule) -> torch.Tensor:
    return mini.splits["test"].uint8(slice(None))


@pytest.fixture(scope="module")
def real_features(real: torch.Tensor, extractor: FeatureExtractor) -> torch.Tensor:
    return extractor.features(real)


@pytest.fixture(scope="module")
def train_features(mini: ImageDataModule, extractor: FeatureExtractor) -> torch.Tensor:
    return extractor.features(mini.splits["train"].uint8(slice(None)))


def standardized(count: int, width: int, seed: int = 0) -> torch.Tensor:
    """Points whose empirical mean is zero and whose empirical covariance is the identity."""
    generator = torch.Generator().manual_seed(seed)
    points = torch.randn(count, width, dtype=torch.float64, generator=generator)
    points = points - points.mean(0)
    return points @ torch.linalg.inv(torch.linalg.cholesky(torch.cov(points.T))).T


def samples(images: torch.Tensor, labels: torch.Tensor | None = None) -> Samples:
    no_labels = torch.full((len(images),), -1)
    settings = dict.fromkeys(SETTINGS) | {"source": "test"}
    return Samples(images, no_labels if labels is None else labels, settings)


def test_frechet_distance_of_shift_and_scale_matches_the_closed_form():
    points = standardized(500, 16)
    shift = torch.linspace(-1, 1, 16, dtype=torch.float64)
    for scale in (0.5, 1.0, 3.0):
        # |m1 - m2|^2 + tr((c1^1/2 - c2^1/2)^2)
        expected = shift.square().sum().item() + 16 * (1 - scale) ** 2
        found = generation_metrics(scale * points + shift, points).frechet_distance
        assert found == pytest.approx(expected, rel=1e-3)


def test_kernel_distance_is_unbiased():
    x, y = standardized(300, 8), 0.8 * standardized(300, 8, seed=1) + 0.3

    def kernel(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
        return (a @ b.T / 8 + 1) ** 3

    n = 300  # fewer than a subset: every subset is the whole set
    off_diagonal = [kernel(a, a).sum() - kernel(a, a).diagonal().sum() for a in (x, y)]
    expected = (sum(off_diagonal) / (n * (n - 1)) - 2 * kernel(x, y).mean()).item()
    assert generation_metrics(y, x).kernel_distance == pytest.approx(expected, rel=1e-6)


def test_metrics_do_not_use_the_global_generator():
    torch.manual_seed(0)
    expected = torch.rand(3)
    torch.manual_seed(0)
    generation_metrics(standardized(300, 4), standardized(300, 4, seed=1))
    assert torch.equal(torch.rand(3), expected)


def test_equal_sets_have_the_best_metrics(real_features: torch.Tensor):
    metrics = generation_metrics(real_features, real_features)
    assert metrics.frechet_distance == pytest.approx(0, abs=1e-3)
    assert -0.2 < metrics.kernel_distance < 0  # the unbiased estimate of a set against itself
    assert (metrics.precision, metrics.recall, metrics.coverage) == (1, 1, 1)


def test_metrics_get_worse_with_noise(real: torch.Tensor, real_features, extractor):
    noise = torch.randn(real.shape, generator=torch.Generator().manual_seed(0))
    images = [(real + std * noise).clamp(0, 255).round().to(torch.uint8) for std in (0, 15, 60)]
    metrics = [generation_metrics(extractor.features(each), real_features) for each in images]
    for name in ("frechet_distance", "kernel_distance"):
        values = [getattr(each, name) for each in metrics]
        assert all(b > a + 0.01 * values[-1] for a, b in itertools.pairwise(values))
    assert metrics[-1].precision < 0.7 < metrics[0].precision


def test_missing_classes_lower_recall_and_coverage_but_not_precision(
    mini: ImageDataModule, train_features: torch.Tensor, real_features: torch.Tensor
):
    labels = mini.splits["train"].labels
    shuffled = torch.from_numpy(np.random.default_rng(0).permutation(len(labels)))
    metrics = [
        generation_metrics(
            train_features[shuffled[labels[shuffled] < num_classes][:400]], real_features
        )
        for num_classes in (10, 5, 1)
    ]
    for name, sign in (("frechet_distance", 1), ("recall", -1), ("coverage", -1)):
        values = [sign * getattr(each, name) for each in metrics]
        assert values == sorted(values)
        assert values[-1] > values[0] + 0.3
    assert min(each.precision for each in metrics) > 0.9 * metrics[0].precision


def test_class_accuracy_ignores_images_without_a_label():
    labels = torch.tensor([0, 1, 1, -1])
    assert class_accuracy(PROBABILITIES, labels) == pytest.approx(2 / 3)
    assert class_accuracy(PROBABILITIES, torch.full((4,), -1)) is None


def test_scorer_compares_with_real_baseline(mini: ImageDataModule, extractor, real):
    scorer = GenerationScorer(mini, extractor, 300)
    labels = mini.splits["test"].labels[:300]
    scores, closest = scorer.score(samples(real[:300], labels))
    assert closest.shape == (16, 1, 16, 16)
    assert scores.metrics == generation_metrics(
        extractor.features(real[:300]), extractor.features(real)
    )
    assert 0 < scores.real_baseline.frechet_distance < 1
    assert isinstance(scores.real_baseline_std, GenerationMetrics)
    assert 0 < scores.real_baseline_std.frechet_distance < scores.real_baseline.frechet_distance
    assert scores.class_accuracy == pytest.approx(scores.real_class_accuracy, abs=0.06)
    assert scores.reference == "test split of fashion_mnist_mini, 1000 images at 16x16"
    assert scores.memorization["pixels"].ratio == pytest.approx(1, abs=0.15)


@pytest.mark.parametrize("flip", [False, True])
def test_flipped_copies_are_found_if_training_flips(mini: ImageDataModule, extractor, flip: bool):
    flipping = copy.copy(mini)
    flipping.flip = flip
    train = mini.splits["train"]
    copies = train.uint8(slice(0, 20)).flip(-1)
    distances, indices = GenerationScorer(flipping, extractor, 200).nearest_training_images(copies)
    assert (distances == 0).all() == flip
    assert (indices.tolist() == list(range(20))) == flip
