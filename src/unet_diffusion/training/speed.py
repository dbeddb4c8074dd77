"""Choices that make training faster and change nothing else: how tensors lie in memory, compilation, where the images are."""

from collections.abc import Mapping
from dataclasses import dataclass

import torch

from unet_diffusion.checks import shortened
from unet_diffusion.data.datamodule import ImageDataModule
from unet_diffusion.training.hardware import channels_last_is_faster, lay_out
from unet_diffusion.training.module import DenoisingModule

_SHARE = 0.5
"""Of a GPU's free memory, that the training images may take."""


@dataclass(frozen=True)
class Speed:
    """What is done to be fast on a kind of device."""

    channels_last: bool
    """The channel is the last axis in memory, as fast convolutions want it."""
    compile: bool
    """The network is compiled; the first step then takes from seconds to a minute, and every other one less."""
    images_on_device: bool
    """The training images stay on the device, so that none waits for its batch."""

    @classmethod
    def chosen(cls, asked: Mapping[str, object], device: torch.device, image_bytes: int) -> "Speed":
        """From a config's `speed`, whose `auto` is decided for a device and for this much of training images.

        Raises:
            ValueError: a value that is none of auto, true and false.
        """
        on_cuda = device.type == "cuda"
        fits = on_cuda and image_bytes < _SHARE * torch.cuda.mem_get_info(device)[0]
        auto = {"channels_last": channels_last_is_faster(device), "compile": on_cuda, "images_on_device": fits}
        for name, best in auto.items():
            value = asked.get(name, "auto")
            if value not in ("auto", True, False):
                raise ValueError(f"speed.{name}={shortened(value)} must be auto, true or false")
            auto[name] = best if value == "auto" else bool(value)
        return cls(**auto)

    def prepare(self, module: DenoisingModule, device: torch.device) -> None:
        """Lays out the network's weights, which all that goes through it then follows, and compiles its training loss.

        What is not training (validation, pictures, the saved weights) knows nothing of the compiler.
        """
        lay_out(module.denoiser, self.channels_last)
        if self.compile:
            # every training batch has the same shape; CUDA graphs, so that a GPU need not wait for Python
            mode = "reduce-overhead" if device.type == "cuda" else "default"
            module.loss = torch.compile(module.denoiser.loss, dynamic=False, mode=mode)

    def place(self, datamodule: ImageDataModule, device: torch.device) -> None:
        """Moves the training images where they are to be."""
        if self.images_on_device:
            datamodule.splits["train"].keep_on(device)

    def __str__(self) -> str:
        return ", ".join(
            [
                "channels last" if self.channels_last else "channels first",
                "compiled" if self.compile else "not compiled",
                "images on the device" if self.images_on_device else "images in the page cache",
            ]
        )
