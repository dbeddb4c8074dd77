"""How well a denoiser denoises, level by level, with noise that is the same every time, beside what one could do without it."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torchmetrics import MetricCollection

from unet_diffusion.data.datamodule import Batch
from unet_diffusion.diffusion.denoiser import Denoiser
from unet_diffusion.diffusion.noise import image_noise
from unet_diffusion.evaluation.metrics import denoising_metrics

Denoise = Callable[[Tensor, float], Tensor]
"""A denoiser of another kind: from images (B, C, H, W) under Gaussian noise, and the noise's strength, to clean ones."""

_LEAST_ALPHA = 1e-3


@dataclass(frozen=True)
class LevelScore:
    """Scores at one noise level, of several answers to the same noisy images."""

    percent: float
    """Noise level t."""
    answers: dict[str, dict[str, float]]
    """mse, psnr (dB) and ssim of each answer: `network`; `noisy`, the noisy image itself; `rescaled`, the noisy image brought
    back to full contrast and clipped, as a person would be shown it; and those of other denoisers by their names."""

    def as_dict(self) -> dict[str, object]:
        return {"percent": self.percent, **self.answers}


@torch.inference_mode()
def score_levels(
    denoiser: Denoiser,
    batches: Iterable[Batch],
    levels: Sequence[float],
    seed: int,
    device: torch.device,
    others: Mapping[str, Denoise] | None = None,
) -> list[LevelScore]:
    """Scores over all images of `batches` at each level; each image meets the same noise at every level and every time.

    Args:
        denoiser: on `device`, in eval mode.
        batches: clean images.
        levels: noise levels t in [0, 1].
        seed: of the noise, 0 or more.
        device: where the denoiser is.
        others: denoisers to compare with, by name.
    """
    scorers: dict[tuple[float, str], MetricCollection] = {}
    for batch in batches:
        for level in levels:
            clean, answers = _answers(denoiser, batch, level, seed, device, others or {})
            size = (clean.shape[-2], clean.shape[-1])
            for name, answer in answers.items():
                if (level, name) not in scorers:
                    scorers[level, name] = denoising_metrics(size).to(device)
                scorers[level, name].update(answer, clean)
    scores: dict[float, dict[str, dict[str, float]]] = {level: {} for level in levels}
    for (level, name), metrics in scorers.items():
        scores[level][name] = {metric: float(value) for metric, value in metrics.compute().items()}
    return [LevelScore(level, answers) for level, answers in scores.items()]


@torch.inference_mode()
def denoised_examples(
    denoiser: Denoiser,
    batch: Batch,
    levels: Sequence[float],
    seed: int,
    device: torch.device,
    others: Mapping[str, Denoise] | None = None,
) -> list[tuple[str, Tensor]]:
    """Rows of images with their names: clean, and at each level the noisy ones and every answer to them; arguments as above."""
    rows = [("clean", batch.x0)]
    for level in levels:
        _, answers = _answers(denoiser, batch, level, seed, device, others or {})
        del answers["noisy"]  # the same as rescaled, only greyer
        rows += [(f"noise {level:g}" if name == "rescaled" else name, answer.cpu()) for name, answer in answers.items()]
    return rows


def _answers(
    denoiser: Denoiser, batch: Batch, level: float, seed: int, device: torch.device, others: Mapping[str, Denoise]
) -> tuple[Tensor, dict[str, Tensor]]:
    """The clean images on `device`, and every answer to what they are at this level."""
    x0, label = batch.x0.to(device), batch.label.to(device)
    eps = image_noise(seed, batch.number.tolist(), x0.shape[1:]).to(device)
    t = x0.new_full((len(x0),), level)
    schedule = denoiser.schedule
    xt = schedule.mix(x0, eps, t)
    alpha, sigma = float(schedule.alpha(t[0])), float(schedule.sigma(t[0]))
    strength = sigma / max(alpha, _LEAST_ALPHA)
    full_contrast = xt / max(alpha, _LEAST_ALPHA)
    answers = {"rescaled": full_contrast.clamp(-1, 1), "noisy": xt}
    answers |= {name: other(full_contrast, strength) for name, other in others.items()}
    return x0, answers | {"network": denoiser(xt, t, label)}
