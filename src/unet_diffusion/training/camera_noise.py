"""Noise like that of cameras, which is neither Gaussian nor white, for training on photographs."""

from io import BytesIO

import torch
from PIL import Image
from torch import Tensor
from torchvision.transforms.v2.functional import gaussian_blur, pil_to_tensor, to_pil_image

from unet_diffusion.diffusion.noise import estimate_noise_std
from unet_diffusion.diffusion.schedules import Schedule
from unet_diffusion.images import to_float, to_uint8


def camera_noise(x0: Tensor, t: Tensor, schedule: Schedule) -> tuple[Tensor, Tensor]:
    """Noise of cameras, instead of Gaussian noise, for some training images.

    A noisy image is a file of a camera, see `camera_file`, with half the noise of its time `t`.

    Args:
        x0: clean images (B, C, H, W) in [-1, 1].
        t: times (B,).
        schedule: noise schedule.

    Returns:
        eps (B, C, H, W) and times t (B,), so that alpha(t) * x0 + sigma(t) * eps is the noisy image
        times alpha(t). The time is that of the noise that `estimate_noise_std` finds in the image,
        as when a photograph is denoised, but at least that of half the error: correlated noise
        looks smaller than it is.
    """
    std = schedule.sigma(t / 2) / schedule.alpha(t / 2)
    noisy = torch.stack([camera_file(*each) for each in zip(x0.cpu(), std.cpu(), strict=True)])
    error = noisy.to(x0) - x0
    lowest = error.square().mean(dim=(1, 2, 3)).sqrt() / 2
    t = schedule.time_of_noise(estimate_noise_std(noisy).to(t).maximum(lowest).clamp(min=0.002))
    return error / (schedule.sigma(t) / schedule.alpha(t))[:, None, None, None], t


def camera_file(x0: Tensor, std: Tensor) -> Tensor:
    """A clean image (C, H, W) in [-1, 1], as a camera stores it: noisy, in 8 bits.

    Part of the noise grows with the brightness, as photons are counted (Foi et al. 2008, "Practical
    Poissonian-Gaussian Noise Modeling and Fitting for Single-Image Raw-Data", eq. 3); demosaicing
    and scaling make it similar in neighbouring pixels and channels; half of the images pass JPEG.
    How much of each is random. `std` is the standard deviation before JPEG.
    """
    shot, shared, blur, quality = torch.rand(4).tolist()
    noise = (1 - shared / 2) ** 0.5 * torch.randn_like(x0)
    noise = noise + (shared / 2) ** 0.5 * torch.randn_like(x0[:1])
    if blur > 0.3:
        noise = gaussian_blur(noise, [5, 5], [blur])
    brightness = x0.mean(dim=0, keepdim=True) / 2 + 0.5
    noise *= (1 - shot + shot * brightness / brightness.mean().clamp(min=0.01)).sqrt()
    stored = to_uint8(x0 + noise * (std / noise.std()))
    if quality > 0.5:  # 70 to 98
        file = BytesIO()
        to_pil_image(stored).save(file, "JPEG", quality=round(42 + 56 * quality))
        stored = pil_to_tensor(Image.open(file))
    return to_float(stored)
