"""Denoises image files: `python scripts/denoise.py run=runs/... input=photo.png`."""

from unet_diffusion.cli import run_script

if __name__ == "__main__":
    run_script("denoise")
