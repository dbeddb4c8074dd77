"""Fills, enlarges, sharpens images: `python scripts/restore.py task=enlarge input=photo.jpg`."""

from unet_diffusion.cli import run_script

if __name__ == "__main__":
    run_script("restore")
