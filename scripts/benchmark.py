"""Measures speed: `python scripts/benchmark.py [benchmark=speed] [key=value of train.py]`; see docs/performance.md."""

import sys
from pathlib import Path

from unet_diffusion.benchmarks.study import benchmark
from unet_diffusion.cli import run_script

if __name__ == "__main__":
    # a group beside those of train.yaml, whose keys all mean here what they mean there
    sys.argv[1:] = [f"+{word}" if word.startswith("benchmark=") else word for word in sys.argv[1:]]
    if not any(word.startswith("+benchmark=") for word in sys.argv):
        sys.argv.append("+benchmark=speed")
    run_script(benchmark, Path(__file__).parents[1] / "conf" / "train.yaml")
