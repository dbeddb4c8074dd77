"""Exports the model of a run: `python scripts/export.py run=runs/... [format=onnx]`."""

from unet_diffusion.cli import run_script

if __name__ == "__main__":
    run_script("export")
