import copy

import pytest
import torch
from torch import nn

from unet_diffusion.training.muon import Muon, orthogonal


@pytest.mark.parametrize("shape", [(3, 32, 64), (2, 64, 32), (1, 48, 48)])
def test_steps_are_nearly_orthogonal_and_keep_their_directions(shape: tuple[int, ...]):
    torch.manual_seed(0)
    matrices = torch.randn(shape)
    found = orthogonal(matrices)
    assert torch.linalg.svdvals(found).min() > 0.5
    assert torch.linalg.svdvals(found).max() < 1.3
    u, _, v = torch.linalg.svd(matrices, full_matrices=False)
    alike = torch.nn.functional.cosine_similarity(found.flatten(1), (u @ v).flatten(1))
    assert alike.min() > 0.95


def net() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(1, 32, 3), nn.ReLU(), nn.Conv2d(32, 64, 3), nn.GroupNorm(2, 64), nn.Conv2d(64, 1, 3))


def backward(network: nn.Module, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    network.zero_grad()
    (network(torch.randn(4, 1, 9, 9, generator=generator)) - 1).square().mean().backward()


def test_only_large_matrices_get_orthogonal_steps():
    network = net()
    optimizer = Muon(network.parameters(), lr=0.01, weight_decay=0)
    (hidden,) = optimizer.param_groups[0]["params"]
    assert hidden is network[2].weight
    before = hidden.detach().clone()
    backward(network, 0)
    optimizer.step()
    # the first step's mean is along the gradient, whose length does not matter
    step = orthogonal(hidden.grad.flatten(1)[None])[0].view(hidden.shape)
    moved = before - hidden.detach()
    assert torch.nn.functional.cosine_similarity(moved.flatten(), step.flatten(), dim=0) > 0.9
    assert moved.norm().item() == pytest.approx(0.01 * step.norm().item(), rel=0.1)


def test_the_rest_steps_as_adam_does():
    ours, theirs = net(), net()
    optimizer = Muon(ours.parameters(), lr=0.02, adam_ratio=0.25, betas=(0.8, 0.95))
    rest = [p for i, p in enumerate(theirs.parameters()) if i != 2]
    reference = torch.optim.AdamW(rest, lr=0.005, betas=(0.8, 0.95), weight_decay=0)
    for seed in range(5):
        backward(ours, seed)
        for mine, other in zip(ours.parameters(), theirs.parameters(), strict=True):
            other.grad = mine.grad.clone()
        optimizer.step()
        reference.step()
    for i, (mine, other) in enumerate(zip(ours.parameters(), theirs.parameters(), strict=True)):
        if i != 2:
            torch.testing.assert_close(mine, other)


def test_the_order_in_memory_changes_nothing():
    torch.manual_seed(0)
    start, gradient = torch.randn(2, 32, 16, 3, 3)
    moved = []
    for order in (torch.contiguous_format, torch.channels_last):
        weight = nn.Parameter(start.clone(memory_format=order))
        weight.grad = gradient.clone(memory_format=order)
        Muon([weight], lr=0.01).step()
        moved.append(weight.detach().contiguous())
    torch.testing.assert_close(moved[0], moved[1], rtol=0, atol=2e-4)
    assert (moved[0] - start).abs().mean() > 5e-4


def test_a_saved_state_goes_on_to_the_same_weights():
    whole = net()
    optimizer = Muon(whole.parameters(), lr=0.01)
    for seed in range(3):
        backward(whole, seed)
        optimizer.step()
    halfway, state = copy.deepcopy(whole), copy.deepcopy(optimizer.state_dict())
    resumed = Muon(halfway.parameters(), lr=0.5)
    resumed.load_state_dict(state)
    for seed in range(3, 6):
        for network, stepper in ((whole, optimizer), (halfway, resumed)):
            backward(network, seed)
            stepper.step()
    assert all(torch.equal(a, b) for a, b in zip(whole.parameters(), halfway.parameters(), strict=True))


def test_it_learns_and_decays():
    network = net()
    optimizer = Muon(network.parameters(), lr=0.01)
    for seed in range(30):
        backward(network, seed)
        optimizer.step()
    assert (network(torch.randn(4, 1, 9, 9)) - 1).square().mean() < 0.1
    weight = nn.Parameter(torch.ones(16, 16))
    weight.grad = torch.zeros_like(weight)
    Muon([weight], lr=0.1, weight_decay=0.5).step()
    torch.testing.assert_close(weight.detach(), torch.full((16, 16), 0.95))


@pytest.mark.parametrize(
    "typed",
    [{"lr": 0}, {"momentum": 1}, {"weight_decay": -1}, {"adam_ratio": 0}, {"betas": (0.9, 1.0)}, {"betas": (0.9,)}],
    ids=str,
)
def test_impossible_arguments_are_refused(typed: dict):
    with pytest.raises(ValueError, match=f"^{next(iter(typed))}="):
        Muon([nn.Parameter(torch.ones(2))], **typed)
