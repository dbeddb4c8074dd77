"""Training loops to compare with: the lesson's, and one with nothing in it but the network's own work."""

import itertools
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
import torch
from omegaconf import DictConfig
from PIL import Image
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset
from torch.utils.flop_counter import FlopCounterMode
from torchvision.transforms import Compose, Lambda, RandomHorizontalFlip, Resize, ToTensor

from unet_diffusion.data.datamodule import ImageDataModule
from unet_diffusion.parts import build, build_datamodule, build_denoiser
from unet_diffusion.training.building import build_module
from unet_diffusion.training.speed import Speed


@dataclass(frozen=True)
class Loop:
    """A network and what trains it."""

    net: nn.Module
    step: Callable[[], Tensor]
    """One training step; returns its loss."""


class PilImages(Dataset[tuple[Tensor, int]]):
    """A dataset as torchvision has it: each image becomes a PIL image and goes through transforms whenever it is asked for."""

    def __init__(self, images: np.ndarray, labels: np.ndarray, size: int) -> None:
        self.images = images
        self.labels = labels
        self.transform = Compose([Resize((size, size)), ToTensor(), RandomHorizontalFlip(), Lambda(_to_minus_one_and_one)])

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, number: int) -> tuple[Tensor, int]:
        return self.transform(Image.fromarray(self.images[number])), int(self.labels[number])


def _to_minus_one_and_one(x: Tensor) -> Tensor:
    return x * 2 - 1


def lesson_loop(cfg: DictConfig, device: torch.device, workers: int = 0, compiled: bool = False) -> Loop:
    """What a reader of the lesson writes: PIL transforms, a loader, eager fp32, Adam at 1e-4, noise of one level, a plain loop.

    The network and the batch size are the config's.
    """
    datamodule: ImageDataModule = build(cfg, "data")
    raw = datamodule.source.open("train", datamodule.root)
    images = raw.read(0, len(raw)).permute(0, 2, 3, 1).numpy()
    dataset = PilImages(images[..., 0] if images.shape[3] == 1 else images, raw.labels, datamodule.image_size[0])
    loader = DataLoader(
        dataset, datamodule.batch_size, shuffle=True, drop_last=True, num_workers=workers, persistent_workers=workers > 0
    )
    net: nn.Module = build(cfg, "model").to(device)
    if compiled:
        net.compile()
    optimizer = torch.optim.Adam(net.parameters(), lr=1e-4)
    percent = 0.5

    def batches() -> Iterator[Tensor]:
        while True:
            for x0, _ in loader:
                yield x0.to(device)

    stream = batches()

    def step() -> Tensor:
        x0 = next(stream)
        xt = x0 * (1 - percent) + torch.randn_like(x0) * percent
        t = torch.full((len(x0),), percent, device=device)
        optimizer.zero_grad()
        loss = nn.functional.mse_loss(net(xt, t), x0)
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        return loss.detach()

    return Loop(net, step)


def bare_loop(cfg: DictConfig, device: torch.device, channels_last: bool, compiled: bool = False) -> Loop:
    """The config's network, loss, optimizer, batch size and precision on images that are on the device already."""
    datamodule = build_datamodule(cfg)
    module = build_module(cfg, datamodule.image_size).to(device)
    Speed(channels_last, compiled, images_on_device=False).prepare(module, device)
    optimizer = module.optimizer(module.denoiser.parameters())
    next_images = images_in_memory(cfg, device)

    def step() -> Tensor:
        x0 = next_images()
        t = module.levels.draw(len(x0), device=device)
        with mixed(cfg, device):
            loss = module.loss(x0, torch.randn_like(x0), t)
        optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        return loss.detach()

    return Loop(module.denoiser.net, step)


def images_in_memory(cfg: DictConfig, device: torch.device) -> Callable[[], Tensor]:
    """Batches of training images that are on the device already, one at each call: (B, C, H, W) in [-1, 1]."""
    datamodule = build_datamodule(cfg)
    size = datamodule.batch_size
    some = range(min(len(datamodule.splits["train"]), 50 * size) // size * size)
    batches = itertools.cycle(torch.split(datamodule.splits["train"].__getitems__(some).x0.to(device), size))
    return lambda: next(batches)


def mixed(cfg: DictConfig, device: torch.device) -> torch.autocast:
    """What computes in the config's precision."""
    dtype = {"bf16-mixed": torch.bfloat16, "16-mixed": torch.float16}.get(str(cfg.trainer.precision))
    return torch.autocast(device.type, dtype, enabled=dtype is not None)


def training_flops(cfg: DictConfig, size: int) -> int:
    """Floating-point operations of the network forward and backward on a batch of `size` images, counted by PyTorch."""
    denoiser = build_denoiser(cfg)
    shape = (cfg.data.channels, *build(cfg, "data").image_size)
    with FlopCounterMode(display=False) as counter:
        denoiser(torch.zeros(size, *shape), torch.full((size,), 0.5)).sum().backward()
    return int(counter.get_total_flops())
