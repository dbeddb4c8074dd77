"""Peers: the training steps of two well-known libraries, with networks that cost about as much as ours."""

import statistics
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from omegaconf import DictConfig
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from unet_diffusion.benchmarks.loops import Loop, bare_loop, images_in_memory, mixed, training_flops
from unet_diffusion.benchmarks.speed import ours
from unet_diffusion.benchmarks.stopwatch import seconds_of
from unet_diffusion.benchmarks.study import Study, bars, measured_device, table
from unet_diffusion.checks import whole_number
from unet_diffusion.errors import UserError
from unet_diffusion.parts import build_denoiser
from unet_diffusion.training.hardware import channels_last_is_faster

_TIMESTEPS = 1000  # what both train on by default


@dataclass
class Peers(Study):
    """Ours, our bare loop, and the bare training steps of denoising-diffusion-pytorch and diffusers, on the same images.

    All have the config's batch size and precision, and their own default layout, loss and optimizer (Adam).

    Args:
        width: of denoising-diffusion-pytorch's `Unet(dim)`, whose resolutions are dim and twice that wide; 8 or more.
        channels: of diffusers' `UNet2DModel(block_out_channels)`, two layers a block, without attention.
        steps: timed steps of each in each round, 1 or more.
        warm_up: steps before those, 1 or more.
        rounds: how often they take their turns, 1 or more; medians are reported.

    Raises:
        ValueError: an argument out of its range.
    """

    width: int
    channels: list[int]
    steps: int
    warm_up: int
    rounds: int

    def __post_init__(self) -> None:
        for name in ("steps", "warm_up", "rounds"):
            whole_number(name, getattr(self, name), at_least=1)
        whole_number("width", self.width, at_least=8)

    def run(self, cfg: DictConfig) -> dict[str, Any]:
        device = measured_device(cfg)
        size = cfg.data.batch_size
        loops = {
            "our bare loop": bare_loop(cfg, device, channels_last_is_faster(device)),
            "denoising-diffusion-pytorch": _denoising_diffusion_pytorch(cfg, device, self.width),
            "diffusers": _diffusers(cfg, device, self.channels),
        }
        flops = {name: _flops(loop, device) for name, loop in loops.items() if name != "our bare loop"}
        flops = {name: training_flops(cfg, size) / size / 1e9 for name in ("ours", "our bare loop")} | flops
        parameters = {name: _count(loop.net) for name, loop in loops.items()} | {"ours": _count(build_denoiser(cfg))}
        for loop in loops.values():
            seconds_of(self.warm_up, loop.step, device)
        rates: dict[str, list[float]] = {}
        train = ours(cfg, self.steps, self.warm_up, with_validation=False)
        for _ in range(self.rounds):
            rates.setdefault("ours", []).append(train() * size)
            for name, loop in loops.items():
                rates.setdefault(name, []).append(self.steps * size / seconds_of(self.steps, loop.step, device))
        medians = {name: statistics.median(each) for name, each in rates.items()}
        rows = [
            [
                name,
                *(f"{value:,.0f}" for value in (medians[name], min(each), max(each))),
                f"{flops[name]:.2f}",
                f"{medians[name] * flops[name]:,.0f}",
                f"{parameters[name] / 1e6:.2f}",
            ]
            for name, each in rates.items()
        ]
        print(f"\nTraining, batches of {size}, {cfg.trainer.precision}, median of {self.rounds} rounds:\n")
        print(table(["", "images/s", "lowest", "highest", "GFLOP an image", "GFLOP/s", "million parameters"], rows))
        return {"images_per_second": medians, "rates": rates, "gflop_per_image": flops, "parameters": parameters}

    def plot(self, record: dict[str, Any], path: Path) -> None:
        work = {name: rate * record["gflop_per_image"][name] for name, rate in record["images_per_second"].items()}
        bars(work, "GFLOP a second").savefig(path, dpi=120)


def _denoising_diffusion_pytorch(cfg: DictConfig, device: torch.device, width: int) -> Loop:
    """As its `Trainer` does a step: noise and loss of `GaussianDiffusion`, Adam."""
    try:
        from denoising_diffusion_pytorch import GaussianDiffusion, Unet
    except ImportError as error:
        raise UserError(_missing("denoising-diffusion-pytorch", error)) from error
    size = cfg.data.image_size
    net = Unet(dim=width, dim_mults=(1, 2), channels=cfg.data.channels)
    diffusion = GaussianDiffusion(net, image_size=size, timesteps=_TIMESTEPS).to(device)
    return _loop(cfg, device, net, torch.optim.Adam(net.parameters(), lr=1e-4), lambda x0: diffusion((x0 + 1) / 2))


def _diffusers(cfg: DictConfig, device: torch.device, channels: list[int]) -> Loop:
    """As its training example does a step: noise of `DDPMScheduler`, the mean squared error of the noise, AdamW."""
    try:
        from diffusers import DDPMScheduler, UNet2DModel
    except ImportError as error:
        raise UserError(_missing("diffusers", error)) from error
    net = UNet2DModel(
        sample_size=cfg.data.image_size,
        in_channels=cfg.data.channels,
        out_channels=cfg.data.channels,
        layers_per_block=2,
        block_out_channels=tuple(channels),
        down_block_types=("DownBlock2D",) * len(channels),
        up_block_types=("UpBlock2D",) * len(channels),
    ).to(device)
    scheduler = DDPMScheduler(num_train_timesteps=_TIMESTEPS)

    def loss(x0: Tensor) -> Tensor:
        noise = torch.randn_like(x0)
        t = torch.randint(0, _TIMESTEPS, (len(x0),), device=device)
        return nn.functional.mse_loss(net(scheduler.add_noise(x0, noise, t), t).sample, noise)

    return _loop(cfg, device, net, torch.optim.AdamW(net.parameters(), lr=1e-4), loss)


def _loop(
    cfg: DictConfig, device: torch.device, net: nn.Module, optimizer: torch.optim.Optimizer, loss: Callable[[Tensor], Tensor]
) -> Loop:
    next_images = images_in_memory(cfg, device)
    net.train()

    def step() -> Tensor:
        with mixed(cfg, device):
            value = loss(next_images())
        optimizer.zero_grad()
        value.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        return value.detach()

    return Loop(net, step)


def _flops(loop: Loop, device: torch.device) -> float:
    """GFLOP of a step an image."""
    images: list[int] = []
    hook = loop.net.register_forward_pre_hook(lambda _, inputs: images.append(len(inputs[0])))
    with FlopCounterMode(display=False) as counter:
        seconds_of(1, partial(loop.step), device)
    hook.remove()
    return float(counter.get_total_flops() / images[0] / 1e9)


def _count(net: nn.Module) -> int:
    return sum(p.numel() for p in net.parameters())


def _missing(library: str, error: ImportError) -> str:
    return f"benchmark=peers needs {library}, which cannot be imported ({error}): try pip install 'unet_diffusion[peers]'"
