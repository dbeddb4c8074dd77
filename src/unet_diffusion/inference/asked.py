"""What scripts are asked for: a trained run with its weights, and what to draw with: sampler, guidance, classes."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from omegaconf import DictConfig, OmegaConf
from torch import Tensor

from unet_diffusion.checks import number
from unet_diffusion.diffusion.denoiser import Denoiser
from unet_diffusion.diffusion.guidance import GuidedDenoiser, check_guidance
from unet_diffusion.errors import UserError
from unet_diffusion.inference.labels import labels_for
from unet_diffusion.parts import build
from unet_diffusion.runs import Run
from unet_diffusion.samplers.base import Sampler
from unet_diffusion.training.hardware import pick_device


@dataclass(frozen=True)
class Trained:
    """A run's denoiser, ready for use."""

    run: Run
    denoiser: Denoiser
    device: torch.device
    weights: str
    """`ema` or `raw`: which are loaded."""

    @classmethod
    def load(cls, cfg: DictConfig, run: Run | None = None) -> "Trained":
        """What a script's config names by `run` (unless one is given), `checkpoint`, `weights` and `device`.

        Raises:
            UserError: one of them cannot be used.
        """
        device = pick_device(cfg.device)
        run = run or Run.named(cfg)
        weights = run.chosen_weights(cfg.weights)
        return cls(run, run.load_denoiser(cfg.checkpoint, device, weights), device, weights)

    @property
    def size_multiple(self) -> int | None:
        """What must divide the sides of an image; None for a network that is tied to its size."""
        multiple: int | None = getattr(self.denoiser.net, "size_multiple", None)
        return multiple

    def labels(self, asked: object, count: int) -> Tensor | None:
        """Class numbers for `count` images, see `labels_for`.

        Raises:
            UserError: there is no such class.
        """
        try:
            return labels_for(asked, count, self.denoiser.num_classes, self.run.class_names)
        except ValueError as error:
            raise UserError(str(error)) from error


@dataclass(frozen=True)
class Generator:
    """A trained denoiser with the sampler and the guidance to draw by."""

    trained: Trained
    guided: GuidedDenoiser
    sampler: Sampler

    @classmethod
    def load(cls, cfg: DictConfig, run: Run | None = None) -> "Generator":
        """What a script's config names as for `Trained`, and by `sampler` and `guidance`.

        Raises:
            UserError: one of them cannot be used.
        """
        run = run or Run.named(cfg)
        sampler = run_sampler(run, cfg.sampler)
        trained = Trained.load(cfg, run)
        try:
            weight = number("guidance", run.config.get("guidance", 0) if cfg.guidance is None else cfg.guidance, low=0.0)
            check_guidance(weight, trained.denoiser.num_classes, run.config.get("label_dropout"))
        except ValueError as error:
            raise UserError(str(error)) from error
        return cls(trained, GuidedDenoiser(trained.denoiser, weight), sampler)


def run_sampler(run: Run, overrides: DictConfig) -> Sampler:
    """The run's own sampler with single keys changed, or another one where `overrides` names it by `_target_`."""
    chosen = overrides if "_target_" in overrides else OmegaConf.merge(run.config.sampler, overrides)
    sampler: Sampler = build(OmegaConf.create({"sampler": chosen}), "sampler")
    return sampler


def folder_name(seed: int, changed: Sequence[str]) -> str:
    """A folder's name by what was asked: different seeds and keys go to different folders."""
    return "_".join([f"seed-{seed}", *("".join(c if c.isalnum() or c in ".-_" else "-" for c in word) for word in changed)])
