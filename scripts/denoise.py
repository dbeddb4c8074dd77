"""Takes noise out of your own images: `python scripts/denoise.py run=runs/... input=photo.png [noise.percent=0.3]`."""

from pathlib import Path

from unet_diffusion.cli import run_script
from unet_diffusion.inference.denoise import denoise

if __name__ == "__main__":
    run_script(denoise, Path(__file__).parents[1] / "conf" / "denoise.yaml")
