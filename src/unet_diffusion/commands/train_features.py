"""scripts/train_features.py: a feature extractor for the scores of generated images."""

import json
from pathlib import Path
from typing import Annotated

import numpy as np
import torch
import torch.nn.functional as F
from pydantic import Field, PositiveFloat, PositiveInt
from safetensors.torch import save

from unet_diffusion.data.cache import resize
from unet_diffusion.data.datamodule import ImageDataModule
from unet_diffusion.errors import UserError
from unet_diffusion.evaluation.feature_extractor import (
    METADATA_KEY,
    FeatureExtractor,
    FeatureNetwork,
)
from unet_diffusion.experiment.parts import construct
from unet_diffusion.experiment.schema import Part, PathStr, Schema, Seed
from unet_diffusion.runs.files import write_atomically

_SMALL = (16, 16)  # pixels; the default size of runs


class Arguments(Schema):
    """The keys of conf/train_features.yaml."""

    data: Part
    output: Annotated[str, Field(pattern=r"\.safetensors$")]
    size: Annotated[int, Field(ge=8, le=512)]
    epochs: PositiveInt
    batch_size: PositiveInt
    lr: PositiveFloat
    seed: Seed
    cache_dir: PathStr


def train_features(arguments: Arguments) -> Path:
    """Trains a classifier on the training images, writes it, and returns its file."""
    size, epochs = arguments.size, arguments.epochs
    path = Path(arguments.output).expanduser()
    torch.manual_seed(arguments.seed)
    data = {**arguments.data, "image_size": size, "batch_size": 1}
    datamodule: ImageDataModule = construct(data, "data")
    datamodule.setup()
    names = datamodule.class_names
    if len(names) < 2:
        raise UserError(f"data={datamodule.source.name}: no classes. Use data.num_clusters=10.")
    train, val, test = (datamodule.splits[split] for split in ("train", "val", "test"))
    rows = np.argsort(np.concatenate([train.rows, val.rows]))  # in the order of the dataset
    images = torch.cat([train.uint8(slice(None)), val.uint8(slice(None))])[rows]
    labels = torch.cat([train.labels, val.labels])[rows]

    network = FeatureNetwork(len(names), datamodule.channels, size)
    network.to(memory_format=torch.channels_last)
    optimizer = torch.optim.AdamW(network.parameters(), weight_decay=0.05)
    batch_size = min(arguments.batch_size, len(images))
    num_batches = len(images) // batch_size
    lr_schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, arguments.lr, epochs * num_batches)
    for epoch in range(epochs):
        order = torch.randperm(len(images))[: num_batches * batch_size]
        for batch in torch.split(order, batch_size):
            x = images[batch]
            if torch.rand(()) < 0.5:  # runs often have small images
                x = resize(x, _SMALL, network.channels)
            loss = F.cross_entropy(network.last(network(x)), labels[batch], label_smoothing=0.05)
            optimizer.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call]
            optimizer.step()
            lr_schedule.step()
        print(f"epoch {epoch + 1} of {epochs}: loss {loss.item():.3f}", flush=True)

    extractor = FeatureExtractor(network.eval(), path.stem)
    accuracy = extractor.accuracy(extractor.features(test.uint8(slice(None))), test.labels)
    metadata = {"classes": list(names), "channels": network.channels, "size": size}
    metadata |= {"accuracy": accuracy, "data": datamodule.source.name}
    state = {name: value.contiguous() for name, value in network.state_dict().items()}
    write_atomically(path, save(state, metadata={METADATA_KEY: json.dumps(metadata)}))
    print(f"Test accuracy {accuracy:.4f}. Saved to {path}.")
    return path
