"""Denoisers that need no training, from scikit-image: what a user might pick in place of a network."""

from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor

from unet_diffusion.errors import UserError
from unet_diffusion.evaluation.denoising import Denoise


def classical_denoisers() -> dict[str, Denoise]:
    """By name; each takes images (B, C, H, W) with Gaussian noise added on top, and its strength, and answers with clean ones.

    What they leave open was chosen on validation images of Fashion-MNIST at 16 x 16 (docs/scores.md): total variation and
    non-local means must smooth more than in proportion where noise is stronger than the image.

    Raises:
        UserError: scikit-image is not installed.
    """
    try:
        import pywt  # noqa: F401 - what denoise_wavelet stands on
        from skimage import restoration
    except ModuleNotFoundError as error:
        raise UserError("classical=true needs scikit-image and PyWavelets: pip install -e '.[classical]'") from error

    def nonlocal_means(image: np.ndarray, strength: float) -> np.ndarray:
        clean: np.ndarray = restoration.denoise_nl_means(
            image,
            patch_size=5,
            patch_distance=7,
            h=strength * (0.55 + 0.08 * strength),
            sigma=strength,
            fast_mode=True,
            channel_axis=-1,
        )
        return clean

    def total_variation(image: np.ndarray, strength: float) -> np.ndarray:
        clean: np.ndarray = restoration.denoise_tv_chambolle(image, weight=0.5 * strength * (1 + strength), channel_axis=-1)
        return clean

    def wavelet(image: np.ndarray, strength: float) -> np.ndarray:
        clean: np.ndarray = restoration.denoise_wavelet(
            image, sigma=strength, wavelet="sym4", channel_axis=-1, rescale_sigma=False
        )
        return clean

    one_by_one = {"nonlocal_means": nonlocal_means, "total_variation": total_variation, "wavelet": wavelet}
    return {name: _over_a_batch(function) for name, function in one_by_one.items()}


def _over_a_batch(function: Callable[[np.ndarray, float], np.ndarray]) -> Denoise:
    def denoise(images: Tensor, strength: float) -> Tensor:
        arrays = images.permute(0, 2, 3, 1).double().cpu().numpy()
        answers = np.stack([function(array, strength).reshape(array.shape) for array in arrays])  # some drop a channel of one
        # clean images lie in [-1, 1], which these do not know
        return torch.from_numpy(answers).permute(0, 3, 1, 2).to(images).clamp(-1, 1)

    return denoise
