"""How well a denoiser denoises, level by level, with noise that is the same every time."""

from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass

import torch

from unet_diffusion.data.datamodule import Batch
from unet_diffusion.diffusion.denoiser import Denoiser
from unet_diffusion.diffusion.noise import image_noise
from unet_diffusion.evaluation.metrics import denoising_metrics


@dataclass(frozen=True)
class LevelScore:
    """Scores at one noise level: of the network's guess, and of the noisy image taken as the answer."""

    percent: float
    """Noise level t."""
    network: dict[str, float]
    """mse, psnr (dB), ssim."""
    noisy: dict[str, float]
    """The same for the noisy input itself."""

    def as_dict(self) -> dict[str, object]:
        return asdict(self)


@torch.inference_mode()
def score_levels(
    denoiser: Denoiser, batches: Iterable[Batch], levels: Sequence[float], seed: int, device: torch.device
) -> list[LevelScore]:
    """Scores over all images of `batches` at each level; each image meets the same noise at every level and every time.

    Args:
        denoiser: on `device`, in eval mode.
        batches: clean images.
        levels: noise levels t in [0, 1].
        seed: of the noise, 0 or more.
    """
    scorers = None
    for x0, label, number in batches:
        if scorers is None:
            size = (x0.shape[-2], x0.shape[-1])
            scorers = [(denoising_metrics(size).to(device), denoising_metrics(size).to(device)) for _ in levels]
        eps = image_noise(seed, number.tolist(), x0.shape[1:]).to(device)
        x0, label = x0.to(device), label.to(device)
        for level, (of_network, of_noisy) in zip(levels, scorers, strict=True):
            t = x0.new_full((len(x0),), level)
            xt = denoiser.schedule.mix(x0, eps, t)
            of_network.update(denoiser(xt, t, label), x0)
            of_noisy.update(xt, x0)
    return [
        LevelScore(level, *({name: float(value) for name, value in metrics.compute().items()} for metrics in pair))
        for level, pair in zip(levels, scorers or [], strict=True)
    ]
