"""Draws images: `python scripts/sample.py run=runs/... [num_images=64] [sampler=heun sampler.steps=10] [label=sneaker]`."""

from pathlib import Path

from unet_diffusion.cli import run_script
from unet_diffusion.inference.sample import sample

if __name__ == "__main__":
    run_script(sample, Path(__file__).parents[1] / "conf" / "sample.yaml", open_groups=["sampler"])
