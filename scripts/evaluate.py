"""Scores a run on the test split, or images by anybody: `python scripts/evaluate.py run=runs/... [num_images=10000]`."""

from pathlib import Path

from unet_diffusion.cli import run_script
from unet_diffusion.evaluation.evaluate import evaluate

if __name__ == "__main__":
    run_script(evaluate, Path(__file__).parents[1] / "conf" / "evaluate.yaml", open_groups=["sampler", "data"])
