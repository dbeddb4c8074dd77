"""Measures speed: `python scripts/benchmark.py [benchmark=throughput] [key=value of train.py]`."""

from unet_diffusion.cli import run_script

if __name__ == "__main__":
    run_script("benchmark")
