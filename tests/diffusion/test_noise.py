import pytest
import torch

from unet_diffusion.diffusion.noise import image_noise


def test_an_image_is_the_same_in_any_batch():
    whole = image_noise(3, range(10), (1, 4, 4))
    assert torch.equal(whole[4:7], image_noise(3, range(4, 7), (1, 4, 4)))
    assert torch.equal(whole[[8, 2]], image_noise(3, [8, 2], (1, 4, 4)))


def test_seeds_and_images_differ():
    a, b = image_noise(0, range(50), (256,)), image_noise(1, range(50), (256,))
    together = torch.cat([a, b])
    correlation = torch.corrcoef(together) - torch.eye(100)
    assert correlation.abs().max() < 6 / 16  # six standard deviations of 1 / sqrt(256)


def test_it_is_standard_gaussian():
    noise = image_noise(0, range(400), (1, 16, 16))
    assert noise.mean().item() == pytest.approx(0, abs=0.01)
    assert noise.std().item() == pytest.approx(1, abs=0.01)
    assert (noise.abs() < 1).float().mean().item() == pytest.approx(0.6827, abs=0.005)


def test_it_leaves_the_training_stream_alone():
    torch.manual_seed(0)
    expected = torch.rand(3)
    torch.manual_seed(0)
    image_noise(0, range(3), (1, 2, 2))
    assert torch.equal(torch.rand(3), expected)
