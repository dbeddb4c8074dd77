import pytest
import torch

from unet_diffusion.evaluation import neighbors
from unet_diffusion.evaluation.neighbors import coverage, nearest, precision_and_recall, radii


@pytest.fixture(autouse=True)
def _small_blocks(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(neighbors, "_BLOCK", 64)


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


def test_copy_has_distance_zero():
    generator = torch.Generator().manual_seed(0)
    pixels = torch.randint(0, 256, (100, 256), generator=generator).float() / 127.5 - 1
    distances, indices = nearest(pixels[70:80], pixels.split(64))
    assert indices.tolist() == list(range(70, 80))
    assert distances.tolist() == [0.0] * 10


def test_radius_is_distance_to_kth_neighbor():
    a = points(200, 0)
    expected = all_distances(a, a).sort(dim=1).values[:, 3]  # the first is the point itself
    torch.testing.assert_close(radii(a, 3), expected)


def test_precision_recall_and_coverage_match_their_definitions():
    generated, real = 0.7 * points(180, 0) + 0.4, points(180, 1)
    between = all_distances(generated, real)
    generated_radii, real_radii = (
        all_distances(a, a).sort(dim=1).values for a in (generated, real)
    )
    precision = (between <= real_radii[None, :, 3]).any(dim=1).double().mean().item()
    recall = (generated_radii[None, :, 3] >= between.T).any(dim=1).double().mean().item()
    covered = (between <= real_radii[None, :, 5]).any(dim=0).double().mean().item()
    assert precision_and_recall(generated, real) == pytest.approx((precision, recall))
    assert coverage(generated, real) == pytest.approx(covered)
    assert 0.1 < recall < precision < 1  # the generated ones are narrower


def test_disjoint_sets_score_zero():
    a, b = points(100, 0), points(100, 1) + 100
    assert precision_and_recall(a, b) == (0, 0)
    assert coverage(a, b) == 0
