"""The loss and the noise of a training step, and what the validation must not change."""

from types import SimpleNamespace
from unittest import mock

import pytest
import torch
from helpers import built

from unet_diffusion.commands.train import build_module
from unet_diffusion.data.dataset import Batch
from unet_diffusion.objectives import NoisyBatch
from unet_diffusion.training.module import DenoisingModule

CLASSES = ("model=unet", "model.channels=[8]", "model.num_classes=10")


def build(*overrides: str) -> DenoisingModule:
    return build_module(built(*overrides))


def training_step(
    module: DenoisingModule, batch: Batch, batch_idx: int = 0, epoch: int = 0, rank: int = 0
) -> tuple[torch.Tensor, NoisyBatch]:
    """The loss of one training step, and the images, noise and times of which it is."""
    trainer = {"global_rank": rank, "current_epoch": epoch, "global_step": 0, "callbacks": []}
    module.trainer = SimpleNamespace(**trainer, estimated_stepping_batches=10, log_every_n_steps=9)
    objective = module.objective
    with mock.patch.object(objective, "loss", wraps=objective.loss) as loss:
        return module.training_step(batch, batch_idx), loss.call_args.args[1]


def test_loss_of_the_flow_is_the_mse_of_the_velocity(clothes: Batch):
    module = build("prediction=velocity", "noise=uniform", *CLASSES, "label_dropout=0").eval()
    torch.nn.init.normal_(module.denoiser.net.out[-1].weight, std=0.1)
    loss, (_, eps, t, _) = training_step(module, clothes)
    assert torch.equal((64 * t).floor(), torch.arange(64.0))
    assert (eps.mean().item(), eps.std().item()) == pytest.approx((0, 1), abs=0.03)
    u = t[:, None, None, None]
    velocity = module.denoiser.net((1 - u) * clothes.x0 + u * eps, t, clothes.label)
    torch.testing.assert_close(loss, ((velocity - (eps - clothes.x0)) ** 2).mean())


def test_noise_of_a_step_depends_on_seed_rank_epoch_and_batch_alone(clothes: Batch):
    def noise(seed: int = 0, **position: int) -> torch.Tensor:
        module = build("noise=uniform", f"seed={seed}", *CLASSES, "label_dropout=0.5")
        _, (_, eps, t, label) = training_step(module, clothes, **position)
        return torch.cat([eps.flatten(), t, label])

    expected = noise(seed=2, rank=1, epoch=3, batch_idx=4)
    torch.manual_seed(5)  # whatever has been drawn before
    assert torch.equal(noise(seed=2, rank=1, epoch=3, batch_idx=4), expected)
    others = [noise(), *(noise(**{key: 1}) for key in ("seed", "rank", "epoch", "batch_idx"))]
    assert len(torch.stack(others).unique(dim=0)) == 5


def test_labels_are_dropped_independently_for_each_image(clothes: Batch):
    module = build(*CLASSES, "label_dropout=0.5")
    labels = torch.stack([training_step(module, clothes, i)[1].label for i in range(4)])
    dropped = labels == -1
    assert 0.3 < dropped.float().mean() < 0.7
    assert torch.equal(labels[~dropped], clothes.label.expand(4, -1)[~dropped])
    assert not torch.equal(dropped[0], dropped[1])


def test_validation_noise_depends_on_the_image_index_alone(clothes: Batch):
    module = build("noise=uniform")
    state = torch.get_rng_state()
    eps, t = module.validation_noise(clothes)
    assert torch.equal(torch.get_rng_state(), state)
    part = Batch(clothes.x0[10:20], clothes.label[10:20], clothes.indices[10:20])
    for whole, own in zip((eps, t), module.validation_noise(part), strict=True):
        assert torch.equal(whole[10:20], own)
    assert t.sort().values.sub(torch.linspace(0, 1, 64)).abs().max() < 0.05
    other = build("noise=uniform", "noise_seed=1").validation_noise(clothes)[0]
    assert not torch.equal(eps, other)
