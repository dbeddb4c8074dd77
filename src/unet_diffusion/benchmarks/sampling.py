"""Sampling speed: images drawn a second, beside the bare network evaluations that they cost."""

import statistics
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from omegaconf import DictConfig

from unet_diffusion.benchmarks.stopwatch import seconds_of
from unet_diffusion.benchmarks.study import Study, bars, measured_device, table
from unet_diffusion.checks import whole_number
from unet_diffusion.diffusion.noise import image_noise
from unet_diffusion.inference.draw import draw
from unet_diffusion.parts import build, build_denoiser
from unet_diffusion.samplers.base import Sampler
from unet_diffusion.training.hardware import channels_last_is_faster, lay_out


@dataclass
class Sampling(Study):
    """What the config's sampler draws with an untrained network (speed does not depend on what it learnt).

    Args:
        batch_sizes: images at a time, to find the best of; 1 or more each.
        images: drawn in each round, 1 or more.
        rounds: how often, in turns; 1 or more.

    Raises:
        ValueError: an argument out of its range.
    """

    batch_sizes: list[int]
    images: int
    rounds: int

    def __post_init__(self) -> None:
        for name in ("images", "rounds"):
            whole_number(name, getattr(self, name), at_least=1)
        for size in self.batch_sizes:
            whole_number("batch_sizes", size, at_least=1)

    @torch.inference_mode()
    def run(self, cfg: DictConfig) -> dict[str, Any]:
        device = measured_device(cfg)
        shape = (cfg.data.channels, *build(cfg, "data").image_size)
        denoiser = build_denoiser(cfg).to(device).eval()
        lay_out(denoiser, channels_last_is_faster(device))
        sampler: Sampler = build(cfg, "sampler")
        nfe = draw(denoiser, sampler, image_noise(0, range(2), shape), device=device).nfe
        eps = image_noise(0, range(self.images), shape)
        rates: dict[str, list[float]] = {}
        for _ in range(self.rounds):
            for size in self.batch_sizes:
                xt, t = eps[:size].to(device), torch.full((len(eps[:size]),), 0.5, device=device)
                calls = max(1, nfe * self.images // len(xt))
                bare = seconds_of(calls, partial(denoiser.net, xt, t), device)
                rates.setdefault(f"bare evaluations, {size} at a time", []).append(calls * len(xt) / nfe / bare)
                drawing = partial(draw, denoiser, sampler, eps, batch_size=size, device=device)
                rates.setdefault(f"drawing, {size} at a time", []).append(self.images / seconds_of(1, drawing, device))
        medians = {name: statistics.median(each) for name, each in rates.items()}
        best = max(value for name, value in medians.items() if name.startswith("bare"))
        rows = [
            [name, *(f"{value:,.1f}" for value in (medians[name], min(each), max(each))), f"{medians[name] / best:.2f}"]
            for name, each in rates.items()
        ]
        print(f"\nImages a second ({nfe} evaluations each), median of {self.rounds} rounds:\n")
        print(table(["", "images/s", "lowest", "highest", "of the best bare"], rows))
        return {"images_per_second": medians, "nfe": nfe, "rates": rates}

    def plot(self, record: dict[str, Any], path: Path) -> None:
        bars(record["images_per_second"], f"images a second, {record['nfe']} evaluations each").savefig(path, dpi=120)
