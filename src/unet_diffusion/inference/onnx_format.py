"""A denoiser as an ONNX file, held against the denoiser itself."""

import contextlib
import io
import logging
import warnings
from collections.abc import Iterator
from pathlib import Path

import torch
from torch import Tensor

from unet_diffusion.diffusion.denoiser import Denoiser
from unet_diffusion.errors import UserError, first_line
from unet_diffusion.training.hardware import lay_out

_BATCHES = (1, 3, 16)
_MOST_DIFFERENCE = 1e-3
"""Between the two answers, as a share of the largest value in them."""


def write_onnx(denoiser: Denoiser, file: Path, image_shape: tuple[int, int, int]) -> str:
    """Writes the denoiser for any number of images at a time; returns a sentence on how near its answers come.

    Its inputs are `xt` (B, C, H, W) and `t` (B,), both float, and for networks with classes `label` (B,), int64 with -1 for
    none; its output is `x0_hat` (B, C, H, W).

    Args:
        denoiser: in eval mode, on the CPU.
        file: where to.
        image_shape: (C, H, W).

    Raises:
        UserError: packages for it are missing, the network cannot be written, or ONNX's answers are not those of PyTorch.
    """
    try:
        import onnx  # noqa: F401
        import onnxruntime
        import onnxscript  # noqa: F401
    except ModuleNotFoundError as error:
        raise UserError(f"format=onnx needs the package {error.name}: pip install -e '.[export]'") from error
    lay_out(denoiser, channels_last=False)
    inputs = _random_inputs(denoiser, 2, image_shape)
    batch = torch.export.Dim("batch", min=1)
    with _quiet():
        try:
            torch.onnx.export(
                denoiser,
                tuple(inputs.values()),
                file,
                input_names=list(inputs),
                output_names=["x0_hat"],
                dynamic_shapes={name: {0: batch} for name in inputs},
                dynamo=True,
                external_data=False,
                verbose=False,
            )
        except Exception as error:
            raise UserError(f"format=onnx: the network cannot be written ({first_line(error)}): try safetensors") from error
    session = onnxruntime.InferenceSession(str(file), providers=["CPUExecutionProvider"])
    off, largest = 0.0, 0.0
    for count in _BATCHES:
        inputs = _random_inputs(denoiser, count, image_shape)
        with torch.inference_mode():
            expected: Tensor = denoiser(*inputs.values())
        (answer,) = session.run(["x0_hat"], {name: value.numpy() for name, value in inputs.items()})
        off = max(off, float((torch.from_numpy(answer) - expected).abs().max()))
        largest = max(largest, float(expected.abs().max()))
    said = f"a largest difference of {off:.1e} in values up to {largest:.2g}"
    if not off <= _MOST_DIFFERENCE * max(1.0, largest):
        raise UserError(f"format=onnx: its answers have {said} from PyTorch's, so it was not kept: try format=safetensors")
    return f"ONNX against PyTorch, {sum(_BATCHES)} random images in batches of {', '.join(map(str, _BATCHES))}: {said}."


def _random_inputs(denoiser: Denoiser, count: int, image_shape: tuple[int, int, int]) -> dict[str, Tensor]:
    """Noise at random levels, the last of them 1, where drawing starts; every class in turn, with none among them."""
    generator = torch.Generator().manual_seed(count)
    inputs = {
        "xt": torch.randn(count, *image_shape, generator=generator),
        "t": torch.rand(count, generator=generator),
    }
    inputs["t"][-1] = 1
    if denoiser.num_classes:
        inputs["label"] = torch.arange(count) % (denoiser.num_classes + 1) - 1
    return inputs


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Silences the exporter's remarks, which are about itself."""
    disabled = logging.root.manager.disable
    logging.disable(logging.ERROR)
    try:
        with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(disabled)
