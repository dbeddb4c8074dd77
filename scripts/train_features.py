"""Trains the feature network on Fashion-MNIST's real training images: `python scripts/train_features.py [FOLDER]`."""

import sys
from pathlib import Path

import torch
import torch.nn.functional as F
from safetensors.torch import save_file

from unet_diffusion.data.fashion_mnist import FashionMNIST
from unet_diffusion.evaluation.features import WEIGHTS, FeatureNetwork, accuracy

EPOCHS, BATCH, PEAK_LR = 8, 256, 4e-3
PACKAGE = Path(__file__).parents[1] / "src" / "unet_diffusion" / "evaluation"


def main() -> None:
    torch.manual_seed(0)
    source = FashionMNIST()
    root = Path(sys.argv[1]) if len(sys.argv) > 1 else None
    train, test = (source.open(split, root) for split in ("train", "test"))
    images, label = train.read(0, len(train)), torch.from_numpy(train.labels)
    network = FeatureNetwork().to(memory_format=torch.channels_last)
    optimizer = torch.optim.AdamW(network.parameters(), weight_decay=0.05)
    steps = EPOCHS * (len(images) // BATCH)
    rates = torch.optim.lr_scheduler.OneCycleLR(optimizer, PEAK_LR, steps)
    for epoch in range(EPOCHS):
        for chosen in torch.split(torch.randperm(len(images))[: len(images) // BATCH * BATCH], BATCH):
            batch = images[chosen]
            if torch.rand(()) < 0.5:  # runs are often at 16 x 16: half of the batches have been that small
                batch = F.interpolate(batch.float(), size=(16, 16), mode="bilinear", antialias=True).round()
            loss = F.cross_entropy(network.classes(batch), label[chosen], label_smoothing=0.05)
            optimizer.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call]
            optimizer.step()
            rates.step()
        print(f"epoch {epoch + 1} of {EPOCHS}: loss {loss.item():.3f}", flush=True)
    network.eval()
    images, label = test.read(0, len(test)), torch.from_numpy(test.labels)
    small = F.interpolate(images.float(), size=(16, 16), mode="bilinear", antialias=True).round()
    print(f"test accuracy {accuracy(network, images, label):.4f}, of 16 x 16 images {accuracy(network, small, label):.4f}")
    save_file({name: value.contiguous() for name, value in network.state_dict().items()}, PACKAGE / WEIGHTS)
    print(f"{sum(p.numel() for p in network.parameters())} parameters in {PACKAGE / WEIGHTS}")


if __name__ == "__main__":
    main()
