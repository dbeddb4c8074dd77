import numpy as np
import pytest
import torch
import torch.nn.functional as F

from unet_diffusion.data.datamodule import ImageDataModule
from unet_diffusion.evaluation.features import FeatureNetwork, accuracy, feature_network
from unet_diffusion.evaluation.generation import Reference, class_accuracy, feature_network_id, real_images


@pytest.fixture(scope="module")
def real(mini: ImageDataModule) -> torch.Tensor:
    return real_images(mini, "test", None)


def test_real_images_are_recognised(mini: ImageDataModule, real: torch.Tensor):
    label = torch.from_numpy(mini.splits["test"].cached.labels)
    assert accuracy(feature_network(), real, label) > 0.88
    assert class_accuracy(real, label) == accuracy(feature_network(), real, label)
    assert class_accuracy(real, (label + 1) % 10) < 0.1
    assert class_accuracy(real, torch.full_like(label, -1)) is None
    assert class_accuracy(real, None) is None


def test_the_distance_is_that_of_two_gaussians(real: torch.Tensor):
    a, b = real[:400], real[500:900].flip(-1)
    with torch.inference_mode():
        features = [feature_network()(some).double().numpy() for some in (a, b)]
    (m1, c1), (m2, c2) = ((f.mean(axis=0), np.cov(f, rowvar=False)) for f in features)
    # |m1 - m2|^2 + tr(c1 + c2 - 2 (c1 c2)^(1/2)), the root by the eigenvalues of the symmetric sqrt(c1) c2 sqrt(c1)
    values, vectors = np.linalg.eigh(c1)
    root = vectors @ np.diag(np.sqrt(values.clip(0))) @ vectors.T
    between = np.sqrt(np.linalg.eigvalsh(root @ c2 @ root).clip(0)).sum()
    expected = ((m1 - m2) ** 2).sum() + np.trace(c1) + np.trace(c2) - 2 * between
    assert Reference(a).frechet_distance(b) == pytest.approx(expected, rel=1e-3)


def test_equal_sets_have_no_distance_and_worse_images_a_larger_one(real: torch.Tensor):
    reference = Reference(real)
    assert reference.frechet_distance(real) == pytest.approx(0, abs=1e-3)
    blurred = [F.avg_pool2d(real.float(), k, stride=1, padding=k // 2).round().to(torch.uint8) for k in (3, 5)]
    noisy = [(real + s * torch.randn(real.shape)).clamp(0, 255).to(torch.uint8) for s in (20, 60)]
    for milder, stronger in (blurred, noisy):
        assert 0.01 < reference.frechet_distance(milder) < reference.frechet_distance(stronger)


def test_colour_and_other_sizes_are_brought_to_the_networks_input(real: torch.Tensor):
    network = feature_network()
    torch.testing.assert_close(network(real[:5].expand(-1, 3, -1, -1)), network(real[:5]))
    large = F.interpolate(real[:50].float(), scale_factor=4, mode="bilinear", antialias=True).round().to(torch.uint8)
    same = (network.classes(large).argmax(1) == network.classes(real[:50]).argmax(1)).float().mean()
    assert same > 0.9


def test_real_images_come_from_the_split_that_is_named(mini: ImageDataModule):
    some = real_images(mini, "train", 30, seed=1)
    assert some.shape == (30, 1, 16, 16)
    assert some.dtype == torch.uint8
    stored = {image.tobytes() for image in mini.splits["train"].cached.images[mini.splits["train"].rows]}
    assert all(image.permute(1, 2, 0).contiguous().numpy().tobytes() in stored for image in some)
    assert not torch.equal(some, real_images(mini, "train", 30, seed=2))


def test_the_floor_is_taken_from_images_as_they_are(mini: ImageDataModule):
    mini.splits["train"].flip = True
    try:
        assert torch.equal(real_images(mini, "train", 30, seed=1), real_images(mini, "train", 30, seed=1))
    finally:
        mini.splits["train"].flip = False


def test_the_weights_that_come_with_the_package():
    assert sum(p.numel() for p in FeatureNetwork().parameters()) == 183_986
    assert feature_network_id().startswith("fashion_mnist_features-")
    assert feature_network().training is False
