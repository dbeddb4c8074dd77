"""Draws images from noise: `python scripts/sample.py run=runs/... [num_images=64] [seed=0] [sampler.noise_scale=1]`."""

from pathlib import Path

from unet_diffusion.cli import run_script
from unet_diffusion.sampling import sample

if __name__ == "__main__":
    run_script(sample, Path(__file__).parents[1] / "conf" / "sample.yaml", open_groups=["sampler"])
