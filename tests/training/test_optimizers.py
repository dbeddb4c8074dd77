"""Muon against an independent implementation."""

import pytest
import torch
from torch import Tensor, nn

from unet_diffusion.training import optimizers
from unet_diffusion.training.optimizers import Muon, orthogonalize


def build_net() -> nn.Sequential:
    torch.manual_seed(0)
    first, last = nn.Conv2d(1, 32, 3), nn.Conv2d(64, 1, 3)
    return nn.Sequential(first, nn.ReLU(), nn.Conv2d(32, 64, 3), nn.GroupNorm(2, 64), last)


def backward(net: nn.Module, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    net.zero_grad()
    (net(torch.randn(4, 1, 9, 9, generator=generator)) - 1).square().mean().backward()


def newton_schulz(matrix: Tensor) -> Tensor:
    """Jordan's five iterations for one matrix, as published."""
    x = matrix.double()
    x = x / x.norm()
    for _ in range(5):
        if x.size(0) > x.size(1):
            gram = x.T @ x
            x = 3.4445 * x + x @ (-4.7750 * gram + 2.0315 * gram @ gram)
        else:
            gram = x @ x.T
            x = 3.4445 * x + (-4.7750 * gram + 2.0315 * gram @ gram) @ x
    return x


@pytest.mark.parametrize("shape", [(3, 32, 64), (2, 64, 32), (1, 48, 48)])
def test_updates_are_nearly_orthogonal_and_keep_their_directions(shape: tuple[int, ...]):
    torch.manual_seed(0)
    matrices = torch.randn(shape)
    updates = orthogonalize(matrices)
    assert (torch.linalg.svdvals(updates) - 0.9).abs().max() < 0.4
    u, _, v = torch.linalg.svd(matrices, full_matrices=False)
    assert torch.cosine_similarity(updates.flatten(1), (u @ v).flatten(1)).min() > 0.95
    expected = torch.stack([newton_schulz(matrix) for matrix in matrices]).float()
    torch.testing.assert_close(updates, expected, rtol=0, atol=2e-2)


def test_steps_equal_those_of_an_independent_implementation(monkeypatch: pytest.MonkeyPatch):
    """Newton-Schulz for the large convolution, torch's AdamW for the other parameters."""
    monkeypatch.setattr(optimizers, "select_dtype", lambda *_: torch.float32)
    net, reference = build_net(), build_net()
    options = {"weight_decay": 0.1, "adam_lr_ratio": 0.25, "betas": (0.8, 0.95)}
    optimizer = Muon(net.parameters(), lr=0.02, **options)
    matrix = reference.get_parameter("2.weight")
    others = [p for p in reference.parameters() if p is not matrix]
    adamw = torch.optim.AdamW(others, lr=0.005, betas=(0.8, 0.95), weight_decay=0)
    momentum = torch.zeros_like(matrix)
    for seed in range(5):
        backward(net, seed)
        for own, other in zip(net.parameters(), reference.parameters(), strict=True):
            assert own.grad is not None
            other.grad = own.grad.clone()
        optimizer.step()
        adamw.step()
        assert matrix.grad is not None
        momentum = 0.95 * momentum + 0.05 * matrix.grad
        update = newton_schulz((0.05 * matrix.grad + 0.95 * momentum).flatten(1)).float()
        with torch.no_grad():
            matrix.mul_(1 - 0.02 * 0.1).sub_(0.02 * update.view_as(matrix))
    for (name, own), other in zip(net.named_parameters(), reference.parameters(), strict=True):
        torch.testing.assert_close(own, other, rtol=1e-5, atol=1e-6, msg=name)


def test_memory_format_does_not_change_the_step():
    torch.manual_seed(0)
    start, gradient = torch.randn(2, 32, 16, 3, 3)
    moved = []
    for memory_format in (torch.contiguous_format, torch.channels_last):
        weight = nn.Parameter(start.clone(memory_format=memory_format))
        weight.grad = gradient.clone(memory_format=memory_format)
        Muon([weight], lr=0.01).step()
        moved.append(weight.detach().contiguous())
    torch.testing.assert_close(moved[0], moved[1], rtol=0, atol=2e-4)
    assert (moved[0] - start).abs().mean() > 5e-4
