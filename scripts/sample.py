"""Generates images: `python scripts/sample.py run=runs/... [sampler=heun] [label=sneaker]`."""

from unet_diffusion.cli import run_script

if __name__ == "__main__":
    run_script("sample")
