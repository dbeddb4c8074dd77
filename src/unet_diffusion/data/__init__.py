"""Image datasets: sources, the cache of resized images, and the data module."""

from unet_diffusion.data.datamodule import Batch, ImageDataModule, ImageDataset
from unet_diffusion.data.sources import ImageSource, RawSplit

__all__ = ["Batch", "ImageDataModule", "ImageDataset", "ImageSource", "RawSplit"]
