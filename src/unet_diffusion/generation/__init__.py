"""Generating and denoising images with a trained run."""
