"""Trains a feature extractor for evaluate.py: `python scripts/train_features.py data=cifar10`."""

from unet_diffusion.cli import run_script

if __name__ == "__main__":
    run_script("train_features")
