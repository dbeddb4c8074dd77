import copy
import itertools

import pytest
import torch

from unet_diffusion.data.datamodule import ImageDataModule
from unet_diffusion.evaluation.feature_extractor import FeatureExtractor
from unet_diffusion.evaluation.generation_scores import (
    GenerationScorer,
    fraction_within,
    generation_metrics,
    nearest,
    radii,
)


@pytest.fixture(scope="module")
def real_features(real: torch.Tensor, extractor: FeatureExtractor) -> torch.Tensor:
    return extractor.features(real)


def standardized(count: int, width: int, seed: int = 0) -> torch.Tensor:
    """Points whose empirical mean is zero and whose empirical covariance is the identity."""
    generator = torch.Generator().manual_seed(seed)
    points = torch.randn(count, width, dtype=torch.float64, generator=generator)
    points = points - points.mean(0)
    return points @ torch.linalg.inv(torch.linalg.cholesky(torch.cov(points.T))).T


def test_frechet_distance_of_shift_and_scale_matches_the_closed_form():
    points = standardized(500, 16)
    shift = torch.linspace(-1, 1, 16, dtype=torch.float64)
    for scale in (0.5, 1.0, 3.0):
        # |m1 - m2|^2 + tr((c1^1/2 - c2^1/2)^2)
        expected = shift.square().sum().item() + 16 * (1 - scale) ** 2
        found = generation_metrics(scale * points + shift, points)["frechet_distance"]
        assert found == pytest.approx(expected, rel=1e-3)


def test_metrics_get_worse_with_noise(real: torch.Tensor, real_features, extractor):
    noise = torch.randn(real.shape, generator=torch.Generator().manual_seed(0))
    images = [(real + std * noise).clamp(0, 255).round().to(torch.uint8) for std in (0, 15, 60)]
    metrics = [generation_metrics(extractor.features(each), real_features) for each in images]
    values = [each["frechet_distance"] for each in metrics]
    assert all(b > a + 0.01 * values[-1] for a, b in itertools.pairwise(values))
    assert metrics[-1]["precision"] < 0.7 < metrics[0]["precision"]


@pytest.fixture(scope="module")
def scorer(mini: ImageDataModule, extractor) -> GenerationScorer:
    return GenerationScorer(mini, extractor, 300)


def test_scorer_compares_with_real_baseline(scorer, mini: ImageDataModule, extractor, real):
    labels = mini.splits["test"].labels[:300]
    scores, closest = scorer.score(real[:300], labels)
    assert closest.shape == (16, 1, 16, 16)
    expected = generation_metrics(extractor.features(real[:300]), extractor.features(real))
    assert scores["metrics"] == expected
    baseline, std = (
        scores[name]["frechet_distance"] for name in ("real_baseline", "real_baseline_std")
    )
    assert 0 < std < baseline < 1
    assert scores["class_accuracy"] == pytest.approx(scores["real_class_accuracy"], abs=0.06)
    assert scores["reference"] == "test split of fashion_mnist_mini, 1000 images at 16x16"
    assert scores["memorization"]["ratio"] == pytest.approx(1, abs=0.15)
    null_labels = torch.full((300,), -1)
    assert scorer.score(real[:300], null_labels)[0]["class_accuracy"] is None


def test_copies_of_training_images_are_detected(scorer, mini: ImageDataModule):
    copies = mini.splits["train"].uint8(slice(0, 300))
    scores, closest = scorer.score(copies, None)
    found = scores["memorization"]
    assert (found["generated"], found["ratio"], found["fraction_closer"]) == (0, 0, 1)
    assert torch.equal(closest[:8], closest[8:])


@pytest.mark.parametrize("flip", [False, True])
def test_flipped_copies_are_found_if_training_flips(scorer, mini: ImageDataModule, flip: bool):
    flipping = copy.copy(mini)
    flipping.flip = flip
    scorer = copy.copy(scorer)
    scorer.datamodule = flipping
    copies = mini.splits["train"].uint8(slice(0, 20)).flip(-1)
    distances, indices = scorer.nearest_training_images(copies)
    assert (distances == 0).all() == flip
    assert (indices.tolist() == list(range(20))) == flip


@pytest.fixture(autouse=True)
def _small_blocks(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("unet_diffusion.evaluation.generation_scores._BLOCK", 64)


def points(count: int, seed: int, width: int = 4) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(count, width, dtype=torch.float64, generator=generator)


def all_distances(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    return (a[:, None] - b[None]).square().sum(-1).sqrt()


def test_nearest_matches_exhaustive_search():
    a, b = points(150, 0), points(333, 1)
    distances, indices = nearest(a, b.split(100))
    expected = all_distances(a, b).min(dim=1)
    assert torch.equal(indices, expected.indices)
    torch.testing.assert_close(distances, expected.values)


def test_radius_is_distance_to_kth_neighbor():
    a = points(200, 0)
    expected = all_distances(a, a).sort(dim=1).values[:, 3]  # the first is the point itself
    torch.testing.assert_close(radii(a, 3), expected)


def test_precision_and_recall_match_their_definitions():
    generated, real = 0.7 * points(180, 0) + 0.4, points(180, 1)
    between = all_distances(generated, real)
    generated_radii, real_radii = (
        all_distances(a, a).sort(dim=1).values for a in (generated, real)
    )
    precision = (between <= real_radii[None, :, 3]).any(dim=1).double().mean().item()
    recall = (generated_radii[None, :, 3] >= between.T).any(dim=1).double().mean().item()
    assert fraction_within(generated, real) == pytest.approx(precision)
    assert fraction_within(real, generated) == pytest.approx(recall)
    assert 0.1 < recall < precision < 1  # the generated ones are narrower
