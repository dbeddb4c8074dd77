"""Devices: what is available, and the precision, memory layout and batch size that are fast."""

from collections.abc import Sequence
from typing import Literal

import torch
from torch import nn

from unet_diffusion.errors import UserError

Precision = Literal["32-true", "bf16-mixed", "16-mixed"]  # names of Lightning
DType = Literal["auto", "float32", "bfloat16"]


def select_device(name: str) -> torch.device:
    """The device for sampling and evaluation; `auto` prefers a GPU."""
    try:
        device = torch.device(accelerator_device("auto") if name == "auto" else name)
        torch.empty(1, device=device).item()  # an error for `meta`
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        raise UserError(f"device={name}: not available here. Use device=auto or cpu.") from error
    return device


def training_precision(accelerator: str, precision: Literal["auto"] | Precision) -> Precision:
    """Checks accelerator and precision; returns Lightning's precision, with `auto` replaced."""
    device = accelerator_device(accelerator)
    if device == "cpu" and accelerator not in ("auto", "cpu"):
        raise UserError(f"accelerator={accelerator}: not available here. Use accelerator=auto.")
    if precision.startswith("16") and device == "cpu":
        raise UserError("precision=fp16: requires a GPU. Use precision=bf16 or precision=fp32.")
    if precision.startswith("bf16") and device == "cuda" and not torch.cuda.is_bf16_supported():
        raise UserError("precision=bf16: not supported by this GPU. Use precision=fp32 or fp16.")
    if precision == "auto":
        return "bf16-mixed" if is_fast_at_bf16(device) else "32-true"
    return precision


def accelerator_device(accelerator: str) -> str:
    """The device type, `cuda`, `mps` or `cpu`, that Lightning's accelerator name selects here."""
    device = torch.accelerator.current_accelerator(check_available=True)
    return device.type if device and accelerator in ("auto", "gpu", device.type) else "cpu"


def is_fast_at_bf16(device_type: str) -> bool:
    """Whether bfloat16 is faster than float32: GPUs from Ampere, CPUs with AMX or AVX512_BF16."""
    if device_type == "cuda":
        return bool(torch.cuda.is_bf16_supported(including_emulation=False))
    # torch.cpu.get_capabilities is not in PyTorch 2.10.
    fast = torch.cpu._is_amx_tile_supported() or torch.cpu._is_avx512_bf16_supported()
    return device_type == "cpu" and fast


def select_dtype(name: DType, device_type: str) -> torch.dtype:
    """`auto` is bfloat16 if the device is fast at it, else float32."""
    is_bf16 = name == "bfloat16" or (name == "auto" and is_fast_at_bf16(device_type))
    return torch.bfloat16 if is_bf16 else torch.float32


def prefers_channels_last(device: torch.device) -> bool:
    """Measured for CPUs (docs/explanation/performance.md); PyTorch's advice for CUDA."""
    return device.type in ("cpu", "cuda")


def set_memory_format(net: nn.Module, channels_last: bool) -> None:
    """Converts a network's weights in place; its activations follow them."""
    net.to(memory_format=torch.channels_last if channels_last else torch.contiguous_format)


def inference_batch_size(image_shape: Sequence[int], device: torch.device) -> int:
    """Images per batch without gradients: what fits into a CPU's caches, or keeps a GPU busy."""
    pixels_per_batch = 1 << 15 if device.type == "cpu" else 1 << 18
    return max(1, pixels_per_batch // (image_shape[-2] * image_shape[-1]))
