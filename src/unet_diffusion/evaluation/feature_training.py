"""`scripts/train_features.py`: a feature network from real training images alone."""

import os
from pathlib import Path

import torch
import torch.nn.functional as F
from omegaconf import DictConfig
from torch import Tensor

from unet_diffusion.checks import number, seed_number, shortened, whole_number
from unet_diffusion.data.cache import CachedSplit, cached_split
from unet_diffusion.data.datamodule import ImageDataModule
from unet_diffusion.data.sources import SplitName
from unet_diffusion.errors import UserError, first_line
from unet_diffusion.evaluation.features import LARGEST, FeatureNetwork, save_network
from unet_diffusion.parts import build
from unet_diffusion.paths import named_path

_SMALL = 16


def train_features(cfg: DictConfig) -> Path:
    """Trains on the images that `conf/train_features.yaml` names; returns the file that is written.

    Raises:
        UserError: the images have no classes or cannot be used, or an argument is out of its range.
    """
    try:
        epochs = whole_number("epochs", cfg.epochs, at_least=1)
        batch_size = whole_number("batch_size", cfg.batch_size, at_least=1)
        size = whole_number("size", cfg.size, at_least=8, at_most=LARGEST)
        rate = number("lr", cfg.lr, low=1e-12)
        torch.manual_seed(seed_number("seed", cfg.seed))
        output = named_path("output", cfg.output)
        if output.suffix != ".safetensors":
            raise ValueError(f"output={shortened(cfg.output)} must end in .safetensors")
        if not output.parent.is_dir() or not os.access(output.parent, os.W_OK):
            raise ValueError(f"output={shortened(cfg.output)} cannot be written: name a file in a folder that is there")
    except ValueError as error:
        raise UserError(first_line(error)) from error
    datamodule: ImageDataModule = build(cfg, "data")
    train, test = (_split(datamodule, name, size) for name in ("train", "test"))
    if len(train.class_names) < 2:
        raise UserError(f"data={datamodule.source.name} has no classes, which a feature network is trained to tell apart")
    if batch_size > len(train.images):
        raise UserError(f"batch_size={batch_size} is larger than the {len(train.images)} training images: give a smaller one")
    network = FeatureNetwork(len(train.class_names), datamodule.channels, size).to(memory_format=torch.channels_last)
    images, label = _tensors(train)
    _fit(network, images, label, epochs, batch_size, rate)
    images, label = _tensors(test)
    accuracy = _accuracy(network, images, label)
    print(f"test accuracy {accuracy:.4f}, of images at {_SMALL} x {_SMALL} {_accuracy(network, _shrunk(images), label):.4f}")
    try:
        save_network(network, output, train.class_names, accuracy, datamodule.source.name)
    except OSError as error:
        raise UserError(f"output={output} cannot be written ({error}): name another file") from error
    print(f"{sum(p.numel() for p in network.parameters())} parameters in {output}")
    return output


def _split(datamodule: ImageDataModule, name: SplitName, size: int) -> CachedSplit:
    found = cached_split(
        datamodule.source,
        name,
        datamodule.root,
        (size, size),
        datamodule.channels,
        datamodule.cache_dir,
        datamodule.on_unreadable,
    )
    if found is None:
        raise UserError(f"data={datamodule.source.name} has no {name} split, by which a feature network is trained and judged")
    return found


def _tensors(split: CachedSplit) -> tuple[Tensor, Tensor]:
    """uint8 (N, C, H, W) and labels (N,)."""
    return torch.from_numpy(split.images.copy()).permute(0, 3, 1, 2), torch.from_numpy(split.labels)


def _fit(network: FeatureNetwork, images: Tensor, label: Tensor, epochs: int, batch_size: int, rate: float) -> None:
    optimizer = torch.optim.AdamW(network.parameters(), weight_decay=0.05)
    each = len(images) // batch_size
    rates = torch.optim.lr_scheduler.OneCycleLR(optimizer, rate, epochs * each)
    for epoch in range(epochs):
        for chosen in torch.split(torch.randperm(len(images))[: each * batch_size], batch_size):
            batch = images[chosen]
            if torch.rand(()) < 0.5:  # runs are often at 16 x 16: half of the batches have been that small
                batch = _shrunk(batch)
            loss = F.cross_entropy(network.last(network(batch)), label[chosen], label_smoothing=0.05)
            optimizer.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call]
            optimizer.step()
            rates.step()
        print(f"epoch {epoch + 1} of {epochs}: loss {loss.item():.3f}", flush=True)
    network.eval()


def _shrunk(images: Tensor) -> Tensor:
    return F.interpolate(images.float(), size=(_SMALL, _SMALL), mode="bilinear", antialias=True).round()


@torch.inference_mode()
def _accuracy(network: FeatureNetwork, images: Tensor, label: Tensor) -> float:
    seen = [network.last(network(part)).argmax(dim=1) for part in torch.split(images, 500)]
    return float((torch.cat(seen) == label).float().mean())
