"""From a lesson's denoising U-Net to an image generator, one switch at a time."""

__version__ = "0.1.0"
