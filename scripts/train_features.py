"""Trains a feature network to score drawings by: `python scripts/train_features.py data=cifar10 output=cifar10.safetensors`."""

from pathlib import Path

from unet_diffusion.cli import run_script
from unet_diffusion.evaluation.feature_training import train_features

if __name__ == "__main__":
    run_script(train_features, Path(__file__).parents[1] / "conf" / "train_features.yaml")
