"""Puts runs on one page: `python scripts/report.py runs=runs/road [output=report]`."""

from pathlib import Path

from unet_diffusion.cli import run_script
from unet_diffusion.evaluation.report import report

if __name__ == "__main__":
    run_script(report, Path(__file__).parents[1] / "conf" / "report.yaml")
