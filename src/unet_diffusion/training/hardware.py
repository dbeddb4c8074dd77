"""What this machine can do, and what it is fast at."""

import os
from collections.abc import Sequence

import torch
from omegaconf import DictConfig

from unet_diffusion.diffusion.denoiser import Denoiser
from unet_diffusion.errors import UserError

_PIXELS_ON_CPU = 1 << 15
_PIXELS_ON_GPU = 1 << 18


def check_hardware(trainer: DictConfig) -> None:
    """Finds out before anything is built or written.

    Raises:
        UserError: the accelerator is not there, or does not do the precision.
    """
    cuda, mps = torch.cuda.is_available(), torch.backends.mps.is_available()
    asked, precision = str(trainer.accelerator), str(trainer.precision)
    missing = {"gpu": not (cuda or mps), "cuda": not cuda, "mps": not mps}
    if asked not in ("auto", "cpu", *missing):
        raise UserError(f"trainer.accelerator={asked} is not known: choose auto, cpu, gpu, cuda or mps")
    if missing.get(asked):
        raise UserError(
            f"accelerator={asked} was asked for, but torch finds none here: try accelerator=auto or accelerator=cpu"
        )
    on_cuda = cuda and asked in ("auto", "gpu", "cuda")
    on_cpu = asked == "cpu" or not (cuda or mps)
    if precision.startswith("16") and on_cpu:
        raise UserError("precision=fp16 needs a GPU, and this would run on the CPU: try precision=bf16 or precision=fp32")
    if precision.startswith("bf16") and on_cuda and not torch.cuda.is_bf16_supported():
        raise UserError("precision=bf16 is not supported by this GPU: try precision=fp32 or precision=fp16")


def fast_precision(accelerator: str) -> str:
    """What `precision=auto` means here: Lightning's name for bf16 where the hardware is fast at it, else for fp32.

    Fast are GPUs that support it, and CPUs with AMX; other CPUs have it too, but at a loss.
    """
    cuda, mps = torch.cuda.is_available(), torch.backends.mps.is_available()
    if cuda and accelerator in ("auto", "gpu", "cuda"):
        kind = "cuda"
    else:
        kind = "mps" if mps and accelerator in ("auto", "gpu", "mps") else "cpu"
    return "bf16-mixed" if is_fast_at_bf16(kind) else "32-true"


def is_fast_at_bf16(kind: str) -> bool:
    """Whether matrix products in bfloat16 are faster than in float32 on this kind of device: `cuda`, `mps` or `cpu`."""
    if kind == "cuda":
        return bool(torch.cuda.is_bf16_supported(including_emulation=False))
    capabilities = torch.cpu.get_capabilities() if hasattr(torch.cpu, "get_capabilities") else {}  # not in older torch
    return kind == "cpu" and bool(capabilities.get("amx_bf16"))


def channels_last_is_faster(device: torch.device) -> bool:
    """Measured on CPUs (docs/performance.md); on CUDA as PyTorch advises; not known elsewhere."""
    return device.type in ("cpu", "cuda")


def lay_out(denoiser: Denoiser, channels_last: bool) -> None:
    """Orders a network's weights in memory, in place; the images that go through it follow them."""
    denoiser.net.to(memory_format=torch.channels_last if channels_last else torch.contiguous_format)


def images_at_a_time(image_shape: Sequence[int], device: torch.device | str) -> int:
    """How many images (C, H, W) a network without gradients is best given at once.

    A CPU is fastest with what its caches hold, a GPU with as much as keeps all of it busy (docs/performance.md).
    """
    pixels = image_shape[-2] * image_shape[-1]
    return max(1, (_PIXELS_ON_CPU if torch.device(device).type == "cpu" else _PIXELS_ON_GPU) // pixels)


def pick_device(name: str) -> torch.device:
    """The device for sampling and scoring: `auto` takes a GPU where there is one.

    Raises:
        UserError: the device is not known or not there.
    """
    name = str(name)
    if name == "auto":
        of_several = f"cuda:{os.environ['LOCAL_RANK']}" if "LOCAL_RANK" in os.environ else "cuda"  # torchrun: a GPU for each
        name = of_several if torch.cuda.is_available() else "mps" if torch.backends.mps.is_available() else "cpu"
    try:
        device = torch.device(name)
        if device.type not in ("cpu", "cuda", "mps"):
            raise RuntimeError(f"{device.type} is no device for networks")
        torch.empty(1, device=device)
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        raise UserError(f"device={name} cannot be used here: try device=auto or device=cpu") from error
    return device
