import pytest
import torch

from unet_diffusion.evaluation import neighbours
from unet_diffusion.evaluation.neighbours import coverage, nearest, precision_and_recall, radii


@pytest.fixture(autouse=True)
def _small_blocks(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(neighbours, "_BLOCK", 64)


def points(count: int, seed: int, width: int = 4) -> torch.Tensor:
    return torch.randn(count, width, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def all_distances(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    return (a[:, None] - b[None]).square().sum(-1).sqrt()


def test_the_nearest_is_the_nearest_of_all():
    a, b = points(150, 0), points(333, 1)
    distances, rows = nearest(a, b)
    expected = all_distances(a, b).min(dim=1)
    assert torch.equal(rows, expected.indices)
    torch.testing.assert_close(distances, expected.values)


def test_a_copy_has_no_distance_at_all():
    images = torch.randint(0, 256, (100, 1, 16, 16), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    distances, rows = nearest(images[70:80], images, lambda part: part.flatten(1).float() / 127.5 - 1)
    assert rows.tolist() == list(range(70, 80))
    assert distances.tolist() == [0.0] * 10


def test_a_point_reaches_as_far_as_its_kth_neighbour():
    a = points(200, 0)
    expected = all_distances(a, a).sort(dim=1).values[:, 3]  # the first is the point itself
    torch.testing.assert_close(radii(a, 3), expected)


def test_precision_recall_and_coverage_by_their_definitions():
    drawn, real = 0.7 * points(180, 0) + 0.4, points(180, 1)
    between = all_distances(drawn, real)
    reach = {name: all_distances(a, a).sort(dim=1).values for name, a in (("drawn", drawn), ("real", real))}
    precision = (between <= reach["real"][None, :, 3]).any(dim=1).double().mean().item()
    recall = (reach["drawn"][None, :, 3] >= between.T).any(dim=1).double().mean().item()
    covered = (between <= reach["real"][None, :, 5]).any(dim=0).double().mean().item()
    assert precision_and_recall(drawn, real) == pytest.approx((precision, recall))
    assert coverage(drawn, real) == pytest.approx(covered)
    assert 0.1 < recall < precision < 1  # the drawn are narrower


def test_sets_of_one_kind_are_covered_but_for_chance():
    # a real point is uncovered if its 5 nearest among 2n are all real: about 1 / 2**5
    shares = [coverage(points(500, 2 * seed), points(500, 2 * seed + 1)) for seed in range(4)]
    assert sum(shares) / 4 == pytest.approx(1 - 1 / 2**5, abs=0.01)


def test_sets_apart_have_nothing_in_common():
    a, b = points(100, 0), points(100, 1) + 100
    assert precision_and_recall(a, b) == (0, 0)
    assert coverage(a, b) == 0
