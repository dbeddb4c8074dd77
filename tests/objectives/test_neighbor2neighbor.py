"""Neighbor2Neighbor: sub-images, their noise level, and what a network learns from them."""

import pytest
import torch
from torch import Tensor

from unet_diffusion.diffusion import Denoiser, LinearSchedule, VelocityPrediction
from unet_diffusion.models import Network
from unet_diffusion.objectives import Neighbor2NeighborObjective, NoisyBatch
from unet_diffusion.objectives.neighbor2neighbor import random_neighbors, subsample


def test_sub_images_are_neighbours_in_each_cell():
    torch.manual_seed(0)
    row, column = torch.meshgrid(torch.arange(32.0), torch.arange(48.0), indexing="ij")
    images = torch.stack([row, column]).expand(3, 2, 32, 48)
    first, second = subsample(images, random_neighbors(images))
    assert first.shape == second.shape == (3, 2, 16, 24)
    cells = torch.stack([row, column])[:, ::2, ::2]
    for each in (first, second):
        offsets = (each - cells).transpose(0, 1).flatten(1)
        assert set(map(tuple, offsets.T.tolist())) == {(0, 0), (0, 1), (1, 0), (1, 1)}
    distance = (first - second).abs().sum(dim=1)
    assert (distance == 1).all()  # never the same pixel, never the diagonal


class Mean(Network):
    """Predicts a constant image, by its velocity."""

    def __init__(self) -> None:
        super().__init__()
        self.mean = torch.nn.Parameter(torch.zeros(()))

    def forward(self, xt: Tensor, t: Tensor, label: Tensor | None = None) -> Tensor:
        return (xt - self.mean) / t[:, None, None, None]


@pytest.mark.parametrize("consistency", [0.0, 1.0])
def test_noisy_images_alone_teach_the_clean_one(consistency: float):
    torch.manual_seed(0)
    denoiser = Denoiser(Mean(), LinearSchedule(), VelocityPrediction())
    noisy = 0.3 + 0.5 * torch.randn(64, 1, 32, 32)
    batch = NoisyBatch(noisy, torch.zeros_like(noisy), torch.ones(64), torch.full((64,), -1))
    objective = Neighbor2NeighborObjective(consistency)
    optimizer = torch.optim.SGD(denoiser.parameters(), lr=0.02)
    for _ in range(40):
        optimizer.zero_grad()
        loss = objective.loss(denoiser, batch, denoiser, progress=1.0)
        loss.value.backward()
        optimizer.step()
    assert denoiser.net.mean.item() == pytest.approx(0.3, abs=0.01)  # type: ignore[union-attr]
    assert loss.num_images == 64
