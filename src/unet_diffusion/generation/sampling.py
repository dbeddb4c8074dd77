"""Sampling in batches, with noise that does not depend on them."""

import itertools

import torch
from torch import Tensor

from unet_diffusion.diffusion.denoiser import CFGDenoiser, Denoiser
from unet_diffusion.diffusion.noise import seeded_noise
from unet_diffusion.errors import UserError
from unet_diffusion.hardware import inference_batch_size
from unet_diffusion.samplers import Sampler, SamplerOutput


@torch.inference_mode()
def sample_images(
    denoiser: Denoiser | CFGDenoiser,
    sampler: Sampler,
    eps: Tensor,
    label: Tensor | None = None,
    *,
    seed: int = 0,
    batch_size: int | None = None,
    device: torch.device | str = "cpu",
    dtype: torch.dtype = torch.float32,
    x0: Tensor | None = None,
    strength: float = 1.0,
    return_trajectory: bool = False,
) -> SamplerOutput:
    """Generates images (N, C, H, W) in about [-1, 1] on the CPU, batch by batch.

    An image depends on its noise `eps`, and on the index and `seed` of the noise that stochastic
    samplers add, but not on the batch size. The denoiser is on `device` and in eval mode; `label`
    is as in `Sampler.sample`, the other arguments as in `Pipeline.__call__`.
    """
    if not 0 < strength <= 1:
        raise UserError(f"strength={strength}: expected a value in (0, 1].")
    device = torch.device(device)
    batch_size = batch_size or inference_batch_size(eps.shape, device)
    if isinstance(denoiser, CFGDenoiser) and label is not None and bool((label < 0).all()):
        denoiser = denoiser.denoiser  # nothing to guide
    outputs = []
    for rows in torch.split(torch.arange(len(eps)), batch_size):
        xt = eps[rows].to(device)
        if x0 is not None and strength < 1:
            t = torch.full((len(rows),), strength, device=device)
            xt = denoiser.schedule.add_noise(x0[rows].to(device), xt, t)
        indices, steps = rows.tolist(), itertools.count(1)  # step 0 is the initial noise
        fresh = (seeded_noise(seed, indices, eps.shape[1:], step).to(device) for step in steps)
        with torch.autocast(device.type, dtype, enabled=dtype != torch.float32):
            output = sampler.sample(
                denoiser,
                xt,
                None if label is None else label[rows].to(device),
                start=1.0 if x0 is None else strength,
                fresh_noise=fresh.__next__,
                return_trajectory=return_trajectory,
            )
        trajectory = [images.cpu() for images in output.trajectory]
        outputs.append(SamplerOutput(output.images.cpu(), output.nfe, trajectory))
    trajectories = zip(*(output.trajectory for output in outputs), strict=True)
    images = torch.cat([output.images for output in outputs])
    return SamplerOutput(images, outputs[0].nfe, [torch.cat(each) for each in trajectories])
