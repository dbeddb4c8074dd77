"""Image datasets: sources, the cache of resized images, and the data module."""

from unet_diffusion.data.datamodule import Batch, ImageDataModule

__all__ = ["Batch", "ImageDataModule"]
