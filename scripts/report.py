"""Compares runs on one page: `python scripts/report.py runs=runs/experiments [output=report]`."""

from unet_diffusion.cli import run_script

if __name__ == "__main__":
    run_script("report")
