import pytest
import torch
from torch.nn.functional import cosine_similarity

from unet_diffusion.diffusion import seeded_noise, slerp


def test_noise_depends_on_neither_the_batch_nor_the_global_generator():
    state = torch.get_rng_state()
    noise = seeded_noise(3, range(10), (1, 4, 4))
    assert torch.equal(torch.get_rng_state(), state)
    assert torch.equal(noise[4:7], seeded_noise(3, range(4, 7), (1, 4, 4)))
    assert torch.equal(noise[[8, 2]], seeded_noise(3, [8, 2], (1, 4, 4)))
    assert seeded_noise(3, [], (1, 4, 4)).shape == (0, 1, 4, 4)  # last batch of some processes


def test_seeds_indices_and_steps_are_independent():
    noise = torch.cat(
        [seeded_noise(seed, range(30), (256,), step) for seed in (0, 1) for step in (0, 1)]
    )
    correlation = torch.corrcoef(noise) - torch.eye(120)
    assert correlation.abs().max() < 6 / 16  # six standard deviations of 1 / sqrt(256)


def test_noise_is_standard_gaussian():
    noise = seeded_noise(0, range(400), (1, 16, 16))
    assert noise.mean().item() == pytest.approx(0, abs=0.01)
    assert noise.std().item() == pytest.approx(1, abs=0.01)
    assert (noise.abs() < 1).float().mean().item() == pytest.approx(0.6827, abs=0.005)


def test_slerp_follows_the_arc():
    a, b = (seeded_noise(seed, range(4), (1, 16, 16)) for seed in (0, 1))
    torch.testing.assert_close(slerp(a, b, 0), a)
    torch.testing.assert_close(slerp(a, b, 1), b)
    middle = slerp(a, b, 0.5)

    def angle(x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        return cosine_similarity(x.flatten(1), y.flatten(1)).acos()

    torch.testing.assert_close(angle(middle, a) + angle(middle, b), angle(a, b))
    # about half of it: the norms of a and b differ slightly
    torch.testing.assert_close(angle(middle, a), angle(a, b) / 2, rtol=0.1, atol=0)
    assert middle.std().item() == pytest.approx(1, rel=0.05)
    assert torch.lerp(a, b, 0.5).std().item() < 0.8  # linear interpolation shrinks
    torch.testing.assert_close(slerp(a, a, 0.3), a)


def test_slerp_decides_for_each_image():
    """A parallel image is interpolated linearly, and does not change how the others are."""
    a, b = (seeded_noise(seed, range(3), (1, 8, 8)) for seed in (0, 1))
    b[1] = 2 * a[1]
    expected = torch.cat([slerp(a[i : i + 1], b[i : i + 1], 0.3) for i in range(3)])
    torch.testing.assert_close(slerp(a, b, 0.3), expected)
    torch.testing.assert_close(expected[1], 1.3 * a[1])
    assert not torch.allclose(expected[0], torch.lerp(a[0], b[0], 0.3))
