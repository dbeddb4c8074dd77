"""Serves a web page: `python scripts/playground.py run=pretrained`, Ctrl-C to stop."""

from unet_diffusion.cli import run_script

if __name__ == "__main__":
    run_script("playground")
