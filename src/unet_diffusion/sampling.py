"""Images drawn from a trained run."""

import os
from pathlib import Path

import numpy as np
import torch
from omegaconf import DictConfig, OmegaConf
from torch import Tensor

from unet_diffusion.checks import whole_number
from unet_diffusion.diffusion.noise import image_noise
from unet_diffusion.errors import UserError, first_line
from unet_diffusion.images import grid, save_png, to_uint8
from unet_diffusion.parts import build
from unet_diffusion.runs import Run
from unet_diffusion.samplers.base import DenoiserLike, Sampler
from unet_diffusion.training.hardware import pick_device


def draw(
    denoiser: DenoiserLike,
    sampler: Sampler,
    num_images: int,
    image_shape: tuple[int, int, int],
    seed: int = 0,
    batch_size: int = 256,
    device: torch.device | str = "cpu",
) -> Tensor:
    """`num_images` images (N, C, H, W) in about [-1, 1], on the CPU.

    Image i of seed s starts from the same noise whatever the batch size and the device.

    Args:
        denoiser: on `device`, in eval mode.
        sampler: turns noise into images.
        num_images: 1 or more.
        image_shape: (C, H, W).
        seed: 0 or more.
        batch_size: images at a time, 1 or more.
        device: where the denoiser is.
    """
    batches = []
    for start in range(0, num_images, batch_size):
        eps = image_noise(seed, range(start, min(start + batch_size, num_images)), image_shape)
        batches.append(sampler.sample(denoiser, eps.to(device)).cpu())
    return torch.cat(batches)


def run_sampler(run: Run, overrides: DictConfig) -> Sampler:
    """The run's own sampler with single keys changed, or another one where `overrides` names it by `_target_`."""
    chosen = overrides if "_target_" in overrides else OmegaConf.merge(run.config.sampler, overrides)
    sampler: Sampler = build(OmegaConf.create({"sampler": chosen}), "sampler")
    return sampler


def _folder_name(seed: int, overrides: DictConfig) -> str:
    """Different seeds and sampler keys go to different folders."""
    changed = [f"{key!s}-{value}" for key, value in overrides.items() if not str(key).startswith("_")]
    return "_".join([f"seed-{seed}", *("".join(c if c.isalnum() or c in ".-_" else "-" for c in word) for word in changed)])


def sample(cfg: DictConfig) -> Path:
    """Draws images from the run that `conf/sample.yaml` names; writes `grid.png` and `samples.npz`, returns their folder.

    Raises:
        UserError: the run cannot be used, or an argument is out of its range.
    """
    try:
        num_images = whole_number("num_images", cfg.num_images, at_least=1)
        batch_size = whole_number("batch_size", cfg.batch_size, at_least=1)
        seed = whole_number("seed", cfg.seed, at_least=0)
        columns = whole_number("columns", cfg.columns, at_least=1)
    except ValueError as error:
        raise UserError(first_line(error)) from error
    device = pick_device(cfg.device)
    run = Run.named(cfg)
    sampler = run_sampler(run, cfg.sampler)
    denoiser = run.load_denoiser(cfg.checkpoint, device)
    images = draw(denoiser, sampler, num_images, run.image_shape, seed, batch_size, device)
    folder = Path(cfg.output).expanduser() if cfg.output else run.path / "samples" / _folder_name(seed, cfg.sampler)
    try:
        save_png(grid(images[: columns * columns], columns), folder / "grid.png")
        # the layout of the ADM evaluation suite (Dhariwal and Nichol 2021): uint8, N x H x W x C, in arr_0
        np.savez_compressed(folder / "samples.npz", arr_0=to_uint8(images).permute(0, 2, 3, 1).numpy())
    except OSError as error:
        raise UserError(f"output={folder} cannot be written ({error}): name another folder") from error
    shown = os.path.relpath(folder)
    print(f"Drew {num_images} images: {type(sampler).__name__}, seed {seed}, checkpoint {run.checkpoint(cfg.checkpoint).name}.")
    print(f"Grid    {shown}/grid.png\nImages  {shown}/samples.npz")
    return folder
