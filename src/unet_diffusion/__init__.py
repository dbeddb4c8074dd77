"""Denoising U-Nets and diffusion models, from a lesson to an image generator."""

__version__ = "0.1.0"
