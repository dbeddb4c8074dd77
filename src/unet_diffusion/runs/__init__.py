"""Run directories and saved models on disk."""

from unet_diffusion.runs.run import Run as Run
