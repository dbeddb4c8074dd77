"""Scores a run's denoising on the test split: `python scripts/evaluate.py run=runs/... [levels=[0.1,0.5,0.9]]`."""

from pathlib import Path

from unet_diffusion.cli import run_script
from unet_diffusion.evaluation.evaluate import evaluate

if __name__ == "__main__":
    run_script(evaluate, Path(__file__).parents[1] / "conf" / "evaluate.yaml", open_groups=["sampler"])
