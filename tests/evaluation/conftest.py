import pytest
import torch

from unet_diffusion.data.datamodule import ImageDataModule
from unet_diffusion.evaluation.feature_extractor import FeatureExtractor, load_feature_extractor


@pytest.fixture(scope="session")
def extractor() -> FeatureExtractor:
    return load_feature_extractor("auto", "fashion_mnist_mini")


@pytest.fixture(scope="session")
def real(mini: ImageDataModule) -> torch.Tensor:
    """All test images, uint8."""
    return mini.splits["test"].uint8(slice(None))
