"""Trains a denoiser: `python scripts/train.py [group=choice] [key=value]`, -m for a sweep."""

from unet_diffusion.cli import run_script

if __name__ == "__main__":
    run_script("train")
