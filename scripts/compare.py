"""Lays the drawings of several runs side by side, scored: `python scripts/compare.py runs=runs/road [output=road.png]`."""

from pathlib import Path

from unet_diffusion.cli import run_script
from unet_diffusion.evaluation.compare import compare

if __name__ == "__main__":
    run_script(compare, Path(__file__).parents[1] / "conf" / "compare.yaml", open_groups=["sampler", "data"])
