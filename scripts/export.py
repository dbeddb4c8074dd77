"""Writes a run's model for use elsewhere: `python scripts/export.py run=runs/... [format=safetensors|onnx|torch]`."""

from pathlib import Path

from unet_diffusion.cli import run_script
from unet_diffusion.inference.export import export

if __name__ == "__main__":
    run_script(export, Path(__file__).parents[1] / "conf" / "export.yaml")
