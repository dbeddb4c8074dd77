"""scripts/train_features.py: a feature extractor from real training images alone."""

from pathlib import Path
from typing import Annotated, Any

import numpy as np
import torch
import torch.nn.functional as F
from omegaconf import OmegaConf
from pydantic import Field, validate_call
from torch import Tensor

from unet_diffusion.config import STRICT, build_datamodule
from unet_diffusion.evaluation.feature_extractor import FeatureNetwork, save_feature_network

_SMALL = 16  # pixels; the default size of runs


@validate_call(config=STRICT)
def train_features(
    data: dict[str, Any],
    output: Annotated[str, Field(pattern=r"\.safetensors$")],
    size: Annotated[int, Field(ge=8, le=512)],
    epochs: Annotated[int, Field(ge=1)],
    batch_size: Annotated[int, Field(ge=1)],
    lr: Annotated[float, Field(gt=0)],
    seed: Annotated[int, Field(ge=0)],
    cache_dir: str,
) -> Path:
    """Trains a classifier and writes it; see conf/train_features.yaml for the arguments.

    Raises:
        ValueError: an argument is invalid, or the images have no classes or cannot be read.
    """
    path = Path(output).expanduser()
    if not path.parent.is_dir():
        raise ValueError(f"output={output}: the folder {path.parent} does not exist.")
    torch.manual_seed(seed)
    data = {**data, "image_size": size, "batch_size": batch_size}
    datamodule = build_datamodule(OmegaConf.create({"data": data}))
    names = list(datamodule.class_names)
    if len(names) < 2:
        raise ValueError(f"data={datamodule.source.name}: the images have no classes.")
    train, val, test = (datamodule.splits[split] for split in ("train", "val", "test"))
    rows = np.sort(np.concatenate([train.rows, val.rows]))
    images, labels = train.cached.read(rows), torch.from_numpy(train.cached.labels[rows])

    network = FeatureNetwork(len(names), datamodule.channels, size)
    network.to(memory_format=torch.channels_last)
    optimizer = torch.optim.AdamW(network.parameters(), weight_decay=0.05)
    num_batches = len(images) // batch_size
    lr_schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, lr, epochs * num_batches)
    for epoch in range(epochs):
        order = torch.randperm(len(images))[: num_batches * batch_size]
        for batch in torch.split(order, batch_size):
            # Runs often have small images: half of the batches are downscaled.
            x = _downscale(images[batch]) if torch.rand(()) < 0.5 else images[batch]
            loss = F.cross_entropy(network.last(network(x)), labels[batch], label_smoothing=0.05)
            optimizer.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call]
            optimizer.step()
            lr_schedule.step()
        print(f"epoch {epoch + 1} of {epochs}: loss {loss.item():.3f}", flush=True)

    network.eval()
    accuracy = _accuracy(network, test.uint8(slice(None)), test.labels)
    small = _accuracy(network, _downscale(test.uint8(slice(None))), test.labels)
    save_feature_network(network, path, names, accuracy, datamodule.source.name)
    print(f"Test accuracy {accuracy:.4f}, at {_SMALL}x{_SMALL} {small:.4f}. Saved to {path}.")
    return path


def _downscale(images: Tensor) -> Tensor:
    """Images at 16 x 16, rounded to integers as if stored at that size."""
    return F.interpolate(images.float(), (_SMALL, _SMALL), mode="bilinear", antialias=True).round()


@torch.inference_mode()
def _accuracy(network: FeatureNetwork, images: Tensor, labels: Tensor) -> float:
    predicted = [network.last(network(batch)).argmax(dim=1) for batch in torch.split(images, 500)]
    return float((torch.cat(predicted) == labels).float().mean())
