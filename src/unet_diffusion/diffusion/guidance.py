"""Guidance: a clearer class, bought with variety."""

import torch
from torch import Tensor

from unet_diffusion.checks import number
from unet_diffusion.diffusion.denoiser import Denoiser

NO_CLASS = -1
"""The label of an image whose class is not told: networks that know classes have a null class for it."""


class GuidedDenoiser:
    """Moves the guess away from the one without a class: x0_hat(label) + weight * (x0_hat(label) - x0_hat()).

    Classifier-free guidance (Ho and Salimans 2022, eq. 6). Images without a class are not guided. Costs two evaluations a call,
    or one at weight 0.

    Args:
        denoiser: trained with label dropout, so that its null class means something.
        weight: 0: the class alone; 1 to 2: clearer, less varied.

    Raises:
        ValueError: `weight` is not a number of 0 or more.
    """

    def __init__(self, denoiser: Denoiser, weight: float) -> None:
        self.denoiser = denoiser
        self.weight = number("guidance", weight, low=0.0)
        self.schedule = denoiser.schedule
        self.evaluations = 2 if self.weight else 1

    def __call__(self, xt: Tensor, t: Tensor, label: Tensor | None = None) -> Tensor:
        if not self.weight or label is None:
            told: Tensor = self.denoiser(xt, t, label)
            return told
        both = self.denoiser(torch.cat([xt, xt]), torch.cat([t, t]), torch.cat([label, torch.full_like(label, NO_CLASS)]))
        told, untold = both.chunk(2)
        moved: Tensor = told + self.weight * (told - untold)
        return moved


def check_guidance(guidance: float, classes: int, label_dropout: object) -> None:
    """Whether there is something to guide by.

    Raises:
        ValueError: the network knows no classes, or has never seen an image without one.
    """
    if guidance and not classes:
        raise ValueError(
            f"guidance={guidance:g} needs a network that knows classes, and this one does not: "
            f"train experiment=06_classes on data that has classes, or take guidance=0"
        )
    if guidance and not label_dropout:
        raise ValueError(
            f"guidance={guidance:g} needs the null class, which was not learned as label_dropout is 0: "
            f"train with label_dropout=0.1, or take guidance=0"
        )
