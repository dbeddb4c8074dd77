"""Evaluates a run on the test split: `python scripts/evaluate.py run=runs/...`."""

from unet_diffusion.cli import run_script

if __name__ == "__main__":
    run_script("evaluate")
