import copy
import itertools

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from helpers import real_images

from unet_diffusion.data.datamodule import ImageBatches, ImageDataModule
from unet_diffusion.evaluation.features import Judge, judge_for
from unet_diffusion.evaluation.generation import Closeness, Reference
from unet_diffusion.evaluation.real import RealImages, StoredImages


@pytest.fixture(scope="module")
def judge() -> Judge:
    return judge_for("auto", "fashion_mnist_mini")


@pytest.fixture(scope="module")
def real(mini: ImageDataModule) -> torch.Tensor:
    return real_images(mini, "test", None)


@pytest.fixture(scope="module")
def reference(real: torch.Tensor, judge: Judge) -> Reference:
    return Reference(judge.features(real))


def standardised(count: int, width: int, seed: int = 0) -> torch.Tensor:
    """Points whose own mean is exactly zero and whose own covariance is exactly the identity."""
    points = torch.randn(count, width, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))
    points = points - points.mean(0)
    return points @ torch.linalg.inv(torch.linalg.cholesky(torch.cov(points.T))).T


def test_the_distance_of_a_shift_and_a_scale_is_the_closed_form():
    points = standardised(500, 16)
    shift = torch.linspace(-1, 1, 16, dtype=torch.float64)
    for scale in (0.5, 1.0, 3.0):
        expected = shift.square().sum().item() + 16 * (1 - scale) ** 2  # |m1 - m2|^2 + tr((c1^1/2 - c2^1/2)^2)
        assert Reference(points).frechet_distance(scale * points + shift) == pytest.approx(expected, rel=1e-3)


def test_the_distance_is_that_of_two_gaussians_that_do_not_commute(real: torch.Tensor, judge: Judge):
    some, others = judge.features(real[:400]), judge.features(real[500:900].flip(-1))
    (m1, c1), (m2, c2) = ((f.mean(axis=0), np.cov(f, rowvar=False)) for f in (some.double().numpy(), others.double().numpy()))
    # |m1 - m2|^2 + tr(c1 + c2 - 2 (c1 c2)^(1/2)), the root by the eigenvalues of the symmetric sqrt(c1) c2 sqrt(c1)
    values, vectors = np.linalg.eigh(c1)
    root = vectors @ np.diag(np.sqrt(values.clip(0))) @ vectors.T
    between = np.sqrt(np.linalg.eigvalsh(root @ c2 @ root).clip(0)).sum()
    expected = ((m1 - m2) ** 2).sum() + np.trace(c1) + np.trace(c2) - 2 * between
    assert Reference(some).frechet_distance(others) == pytest.approx(expected, rel=1e-3)


def test_the_kernel_distance_is_the_unbiased_one():
    x, y = standardised(300, 8), 0.8 * standardised(300, 8, seed=1) + 0.3

    def kernel(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
        return (a @ b.T / 8 + 1) ** 3

    n = 300  # fewer than a subset: every subset is the whole set
    within = sum((kernel(a, a).sum() - kernel(a, a).diagonal().sum()) / (n * (n - 1)) for a in (x, y))
    expected = (within - 2 * kernel(x, y).mean()).item()
    assert Reference(x).closeness(y).kernel_distance == pytest.approx(expected, rel=1e-6)


def test_scores_leave_the_global_random_stream_alone():
    torch.manual_seed(0)
    expected = torch.rand(3)
    torch.manual_seed(0)
    Reference(standardised(300, 4)).closeness(standardised(300, 4, seed=1))
    assert torch.equal(torch.rand(3), expected)


def test_equal_sets_are_as_close_as_can_be(real: torch.Tensor, reference: Reference, judge: Judge):
    closeness = reference.closeness(judge.features(real))
    assert closeness.frechet_distance == pytest.approx(0, abs=1e-3)
    x = judge.features(real).double()  # the unbiased kernel distance of a set to itself is not 0, but a little below
    kernel = (x @ x.T / 64 + 1) ** 3
    n = len(x)
    off_diagonal = (kernel.sum() - kernel.diagonal().sum()) / (n * (n - 1))
    assert closeness.kernel_distance == pytest.approx((2 * off_diagonal - 2 * kernel.mean()).item(), rel=1e-6)
    assert -0.2 < closeness.kernel_distance < 0
    assert (closeness.precision, closeness.recall, closeness.coverage) == (1, 1, 1)


def test_worse_images_are_further_away(real: torch.Tensor, reference: Reference, judge: Judge):
    noise = torch.randn(real.shape, generator=torch.Generator().manual_seed(0))
    blurred = [F.avg_pool2d(real.float(), k, stride=1, padding=k // 2).round().to(torch.uint8) for k in (1, 3, 5, 7)]
    noisy = [(real + s * noise).clamp(0, 255).to(torch.uint8) for s in (0, 15, 30, 60)]
    for worse_and_worse in (blurred, noisy):
        scores = [reference.closeness(judge.features(images)) for images in worse_and_worse]
        for figure in ("frechet_distance", "kernel_distance"):
            values = [getattr(score, figure) for score in scores]
            assert all(b > a + 0.01 * values[-1] for a, b in itertools.pairwise(values))
        assert scores[-1].precision < 0.7 < scores[0].precision


def test_recall_and_coverage_see_classes_that_are_missing_and_precision_does_not(
    mini: ImageDataModule, reference: Reference, judge: Judge
):
    split = mini.splits["train"]
    label = torch.from_numpy(split.cached.labels[split.rows])
    features = judge.features(real_images(mini, "train", None)[label.argsort(stable=True)])
    label = label.sort().values
    shuffled = torch.from_numpy(np.random.default_rng(0).permutation(len(features)))
    scores = []
    for classes in (10, 7, 4, 1):
        chosen = shuffled[label[shuffled] < classes][:400]
        scores.append(reference.closeness(features[chosen]))
    for figure, sign in (("frechet_distance", 1), ("recall", -1), ("coverage", -1)):
        values = [sign * getattr(score, figure) for score in scores]
        assert values == sorted(values)
        assert values[-1] > values[0] + 0.3
    assert min(score.precision for score in scores) > 0.9 * scores[0].precision


def test_real_images_come_closer_as_there_are_more_of_them(mini: ImageDataModule, reference: Reference, judge: Judge):
    features = judge.features(real_images(mini, "train", None))

    def distance(count: int) -> float:
        draws = [np.random.default_rng(draw).permutation(len(features))[:count] for draw in range(4)]
        return float(np.mean([reference.frechet_distance(features[torch.from_numpy(draw)]) for draw in draws]))

    distances = [distance(count) for count in (200, 500, 1000, 2000)]
    assert distances == sorted(distances, reverse=True)
    assert distances[0] > 2 * distances[-1]


def test_features_do_not_depend_on_the_batch_or_on_the_kind_of_number(real: torch.Tensor, judge: Judge):
    whole = judge.features(real[:700])
    parts = torch.cat([judge.features(part) for part in torch.split(real[:700], 33)])
    torch.testing.assert_close(parts, whole, rtol=0, atol=1e-4)
    torch.testing.assert_close(judge.features(real[:700].float() / 127.5 - 1), whole)


def test_colour_and_other_sizes_are_brought_to_the_networks_input(real: torch.Tensor, judge: Judge):
    torch.testing.assert_close(judge.features(real[:5].expand(-1, 3, -1, -1)), judge.features(real[:5]))
    large = F.interpolate(real[:50].float(), scale_factor=4, mode="bilinear", antialias=True).round().to(torch.uint8)
    seen = [judge.probabilities(judge.features(images)) for images in (large, real[:50])]
    assert seen[0] is not None
    assert seen[1] is not None
    assert (seen[0].argmax(1) == seen[1].argmax(1)).float().mean() > 0.9


def test_real_images_are_those_of_the_split_and_never_mirrored(mini: ImageDataModule):
    split = mini.splits["train"]
    split.flip = True
    try:
        images = StoredImages(split)[:30]
    finally:
        split.flip = False
    assert images.dtype == torch.uint8
    for image, row in zip(images, split.rows[:30], strict=True):
        assert np.array_equal(image.permute(1, 2, 0).numpy(), split.cached.images[row])


def test_mean_and_spread_over_draws():
    draws = [Closeness(1.0, 0.1, 0.5, 0.2, 0.3), Closeness(3.0, 0.3, 0.7, 0.2, 0.5)]
    assert Closeness.mean(draws) == Closeness(2.0, 0.2, pytest.approx(0.6), 0.2, 0.4)
    assert Closeness.spread(draws).frechet_distance == pytest.approx(2**0.5)
    assert Closeness.spread(draws).recall == 0


def test_real_images_are_looked_at_again_where_anything_differs(mini: ImageDataModule, judge: Judge):
    first = RealImages.of(mini, judge, 300)
    assert RealImages.of(mini, judge, 300) is first
    other = copy.copy(mini)
    other.splits = mini.splits | {"test": ImageBatches(mini.splits["test"].cached, mini.splits["test"].rows[::2])}
    halved = RealImages.of(other, judge, 300)
    assert halved.floors[0].frechet_distance != first.floors[0].frechet_distance
    assert len(halved.held_out["pixels"]) == 300
    again = RealImages.of(mini, judge, 300)
    assert again is not first
    assert again.floors == first.floors
    assert len(RealImages.of(mini, judge, 200).held_out["features"]) == 200
