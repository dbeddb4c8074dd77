"""Generating and denoising images with a trained run."""

from unet_diffusion.generation.pipeline import Pipeline as Pipeline
