"""The loss of a training step, and what the validation must not change."""

import lightning as L
import pytest
import torch
from helpers import composed
from unet_diffusion.config import build_denoiser
from unet_diffusion.training.train import build_module

from unet_diffusion.data.datamodule import Batch, ImageDataModule
from unet_diffusion.training.module import DenoisingModule

CLASSES = ("model=unet", "model.channels=[8]", "model.num_classes=10")


def build(mini: ImageDataModule, *overrides: str) -> DenoisingModule:
    torch.manual_seed(0)
    return build_module(composed("num_classes=10", *overrides), mini)


def training_loss(module: DenoisingModule, batch: Batch, seed: int = 3) -> torch.Tensor:
    """The loss of one training step whose random numbers start from a seed."""
    options = {"enable_checkpointing": False, "log_every_n_steps": 100, "max_steps": 10}
    trainer = L.Trainer(logger=False, **options)
    module.trainer = trainer
    torch.manual_seed(seed)
    return module.training_step(batch, 0)


@pytest.mark.parametrize(("dense", "count"), [("true", 234_977), ("false", 167_329)])
def test_lesson_network_has_the_known_number_of_parameters(dense: str, count: int) -> None:
    denoiser = build_denoiser(composed(f"model.dense_bottleneck={dense}"))
    assert sum(p.numel() for p in denoiser.parameters()) == count


def test_loss_of_the_lesson_is_the_mse_of_the_clean_image(
    mini: ImageDataModule, clothes: Batch
) -> None:
    module = build(mini, "noise.percent=0.3").eval()
    loss = training_loss(module, clothes)
    torch.manual_seed(3)
    t = module.time_distribution.sample(64)
    eps = torch.randn(64, 1, 16, 16)
    x0_hat = module.denoiser.net(0.7 * clothes.x0 + 0.3 * eps, t)
    assert torch.equal(t, torch.full((64,), 0.3))
    torch.testing.assert_close(loss, ((x0_hat - clothes.x0) ** 2).mean())


def test_loss_of_the_flow_is_the_mse_of_the_velocity(mini: ImageDataModule, clothes: Batch) -> None:
    module = build(mini, "prediction=velocity", "noise=uniform", *CLASSES, "label_dropout=0").eval()
    torch.nn.init.normal_(module.denoiser.net.out[-1].weight, std=0.1)
    loss = training_loss(module, clothes)
    torch.manual_seed(3)
    t = (torch.arange(64) + torch.rand(64)) / 64
    eps = torch.randn(64, 1, 16, 16)
    u = t[:, None, None, None]
    velocity = module.denoiser.net((1 - u) * clothes.x0 + u * eps, t, clothes.label)
    torch.testing.assert_close(loss, ((velocity - (eps - clothes.x0)) ** 2).mean())


def test_labels_are_dropped_independently_for_each_image(
    mini: ImageDataModule, clothes: Batch
) -> None:
    module = build(mini, *CLASSES, "label_dropout=0.5")
    seen = []
    module.denoiser.loss = lambda x0, eps, t, label: seen.append(label) or torch.zeros(())
    for seed in range(4):
        training_loss(module, clothes, seed)
    labels = torch.stack(seen)
    dropped = labels == -1
    assert 0.3 < dropped.float().mean() < 0.7
    assert torch.equal(labels[~dropped], clothes.label.expand(4, -1)[~dropped])
    assert not torch.equal(dropped[0], dropped[1])


def test_validation_noise_depends_on_the_image_index_alone(
    mini: ImageDataModule, clothes: Batch
) -> None:
    module = build(mini, "noise=uniform")
    state = torch.get_rng_state()
    eps, t = module.validation_noise(clothes)
    assert torch.equal(torch.get_rng_state(), state)
    part = Batch(clothes.x0[10:20], clothes.label[10:20], clothes.indices[10:20])
    for whole, own in zip((eps, t), module.validation_noise(part), strict=True):
        assert torch.equal(whole[10:20], own)
    assert t.sort().values.sub(torch.linspace(0, 1, 64)).abs().max() < 0.05
    other = build(mini, "noise=uniform", "noise_seed=1").validation_noise(clothes)[0]
    assert not torch.equal(eps, other)
