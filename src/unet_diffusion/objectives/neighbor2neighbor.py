"""Training a denoiser on noisy images alone."""

import torch
from torch import Tensor

from unet_diffusion.diffusion.denoiser import Denoiser
from unet_diffusion.diffusion.noise import estimate_noise_std
from unet_diffusion.objectives.objective import NoisyBatch, Objective, TrainingLoss

_MIN_TIME = 0.005  # images of less noise are as good as clean


class Neighbor2NeighborObjective(Objective):
    """Two random sub-images of a noisy image are each other's targets; there are no clean images.

    Huang et al. 2021, "Neighbor2Neighbor: Self-Supervised Denoising from Single Noisy Images",
    eq. 6. Neighbouring pixels have nearly the same clean value and independent noise: the mean
    squared error to a noisy target is smallest at its clean mean. The noise level of each image is
    estimated, and no further noise is added.

    Args:
        consistency: weight at the end of training, at least 0, of the term that takes the
            difference of neighbours in the clean image into account; it grows linearly.
    """

    def __init__(self, consistency: float = 1.0) -> None:
        if consistency < 0:
            raise ValueError(f"consistency={consistency}: expected at least 0.")
        self.consistency = consistency

    def loss(
        self, denoiser: Denoiser, batch: NoisyBatch, ema: Denoiser, progress: float
    ) -> TrainingLoss:
        noisy = batch.x0  # y = x0 + std * eps
        t = denoiser.schedule.time_of_noise(estimate_noise_std(noisy)).clamp(min=_MIN_TIME)
        choice = random_neighbors(noisy)
        inputs, targets = subsample(noisy, choice)
        error = predict(denoiser, inputs, t, batch.label) - targets
        with torch.no_grad():
            first, second = subsample(predict(denoiser, noisy, t, batch.label), choice)
        weight = 1 / t[:, None, None, None]  # the error of x0_hat is t times that of the velocity
        reconstruction = (error * weight).square().mean()
        difference = ((error - (first - second)) * weight).square().mean()
        value = reconstruction + self.consistency * progress * difference
        return TrainingLoss(value, len(noisy))


def predict(denoiser: Denoiser, noisy: Tensor, t: Tensor, label: Tensor) -> Tensor:
    """x0_hat of images with additive noise."""
    alpha = denoiser.schedule.alpha(t)[:, None, None, None]
    return denoiser(alpha * noisy, t, label)


def random_neighbors(images: Tensor) -> Tensor:
    """Two neighbouring positions of the four in each 2 x 2 cell (B, 2, H / 2, W / 2)."""
    batch, _, height, width = images.shape
    cells = batch, 1, height // 2, width // 2
    first = torch.randint(4, cells, device=images.device)
    # Positions 0 1 / 2 3: the neighbour differs in its row (xor 2) or its column (xor 1).
    axis = torch.randint(1, 3, cells, device=images.device)
    return torch.cat([first, first ^ axis], dim=1)


def subsample(images: Tensor, choice: Tensor) -> tuple[Tensor, Tensor]:
    """The two sub-images (B, C, H / 2, W / 2) of images (B, C, H, W) at the chosen positions."""
    batch, channels, height, width = images.shape
    cells = torch.nn.functional.pixel_unshuffle(images, 2)
    cells = cells.reshape(batch, channels, 4, height // 2, width // 2)
    first, second = (
        cells.gather(2, choice[:, None, i : i + 1].expand(-1, channels, -1, -1, -1))[:, :, 0]
        for i in (0, 1)
    )
    return first, second
