"""Drawing images: many at a time, each from noise of its own number."""

import itertools
from collections.abc import Callable

import torch
from torch import Tensor

from unet_diffusion.diffusion.denoiser import DenoiserLike
from unet_diffusion.diffusion.noise import image_noise
from unet_diffusion.inference.team import Team
from unet_diffusion.samplers.base import Drawn, Sampler
from unet_diffusion.training.hardware import images_at_a_time


def draw(
    denoiser: DenoiserLike,
    sampler: Sampler,
    eps: Tensor,
    label: Tensor | None = None,
    *,
    seed: int = 0,
    x0: Tensor | None = None,
    strength: float = 1.0,
    keep: bool = False,
    first: int = 0,
    batch_size: int | None = None,
    device: torch.device | str = "cpu",
    team: Team | None = None,
) -> Drawn:
    """Images (N, C, H, W) in about [-1, 1] with their trajectory, on the CPU.

    Image i is the same whatever the batch size and the device, also where the sampler adds noise on the way.

    Args:
        denoiser: on `device`, in eval mode.
        sampler: turns noise into images.
        eps: standard Gaussian noise to start from, (N, C, H, W).
        label: class numbers (N,), -1 for none; None for networks without classes.
        seed: of the noise that the sampler adds, 0 or more.
        x0: images to start from (N, C, H, W): noised to the level `strength`, from where drawing goes down again (Meng et al.
            2022, "SDEdit"). None: start from pure noise.
        strength: level to start from, in (0, 1]; only with `x0`.
        keep: return the trajectory too.
        first: number of the first of these images, which the noise that the sampler adds depends on.
        batch_size: images at a time, 1 or more; None: what is fast on the device.
        device: where the denoiser is.
        team: the processes that draw these images together, all of which call this alike and get them all; None: this one.
    """
    team = team or Team()
    parts: list[Drawn] = []
    size = batch_size or images_at_a_time(eps.shape, device)
    own = team.share(len(eps))
    for start in range(own.start, own.stop, size):
        chosen = slice(start, min(start + size, own.stop))
        noise = eps[chosen].to(device)
        if x0 is None:
            x = sampler.first(denoiser.schedule, noise)
        else:
            x = denoiser.schedule.mix(x0[chosen].to(device), noise, noise.new_full((len(noise),), strength))
        told = None if label is None else label[chosen].to(device)
        drawn = sampler.run(
            denoiser,
            x,
            told,
            start=1.0 if x0 is None else strength,
            noise=_fresh_noise(seed, range(first + chosen.start, first + chosen.stop), eps.shape[1:], device),
            keep=keep,
        )
        parts.append(Drawn(drawn.images.cpu(), drawn.nfe, [x.cpu() for x in drawn.trajectory]))
    parts = team.gathered(parts)
    moments = zip(*(part.trajectory for part in parts), strict=True)
    return Drawn(torch.cat([part.images for part in parts]), parts[0].nfe, [torch.cat(moment) for moment in moments])


def _fresh_noise(seed: int, numbers: range, shape: torch.Size, device: torch.device | str) -> Callable[[], Tensor]:
    """Noise for the images of these numbers, another at each call."""
    streams = itertools.count(1)  # stream 0 is what drawing starts from
    return lambda: image_noise(seed, numbers, shape, next(streams)).to(device)
