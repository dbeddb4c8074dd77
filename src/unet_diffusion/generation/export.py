"""scripts/export.py: the model of a run as one file for other programs.

model.safetensors   the weights of the network
model.pt            the same, for `torch.load(..., weights_only=True)`
model.onnx          the denoiser: xt (B, C, H, W), t (B,), label (B,) for class-conditional
                    networks -> x0_hat (B, C, H, W)
config.json         how to build the network and how to sample
"""

import contextlib
import io
import logging
import os
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal

import torch
from omegaconf import OmegaConf
from pydantic import validate_call
from safetensors.torch import save_file
from torch import Tensor

from unet_diffusion.config import STRICT
from unet_diffusion.diffusion.denoiser import Denoiser
from unet_diffusion.hardware import set_memory_format
from unet_diffusion.runs import Run, Weights, write_json

FILE_NAMES = {"safetensors": "model.safetensors", "torch": "model.pt", "onnx": "model.onnx"}
_ONNX_TOLERANCE = 1e-3  # relative to the largest value


@validate_call(config=STRICT)
def export(
    run: str,
    format: Literal["safetensors", "torch", "onnx"] = "safetensors",
    checkpoint: str = "best",
    weights: Weights = "auto",
    output: str | None = None,
) -> Path:
    """Writes the model and config.json; see conf/export.yaml for the arguments.

    Returns:
        The model file.

    Raises:
        ValueError: the run or the format cannot be used.
    """
    opened = Run.open(run)
    used_weights = opened.resolve_weights(weights)
    used_checkpoint = opened.checkpoint_path(checkpoint)
    denoiser = opened.load_denoiser(checkpoint, weights)
    directory = opened.path / "export" / f"{used_checkpoint.stem}-{used_weights}"
    if output is not None:
        directory = Path(output).expanduser()
    directory.mkdir(parents=True, exist_ok=True)
    file = directory / FILE_NAMES[format]
    temporary = directory / f".{file.name}.tmp"
    state = {name: value.contiguous() for name, value in denoiser.net.state_dict().items()}
    if format == "safetensors":
        save_file(state, temporary, metadata={"format": "pt"})
    elif format == "torch":
        torch.save(state, temporary)
    else:
        export_onnx(denoiser, temporary, opened.image_shape)
    temporary.replace(file)
    write_json(directory / "config.json", _model_config(opened, denoiser, used_checkpoint, weights))
    num_parameters = sum(p.numel() for p in denoiser.parameters())
    print(f"{used_checkpoint.name}, {used_weights} weights, {num_parameters:,} parameters.")
    print(f"Saved to {os.path.relpath(file)} ({file.stat().st_size:,} bytes) and config.json.")
    return file


def export_onnx(denoiser: Denoiser, file: Path, image_shape: tuple[int, int, int]) -> None:
    """Exports the denoiser for any batch size and compares it with PyTorch.

    Args:
        denoiser: in eval mode, on the CPU.
        file: output file.
        image_shape: (C, H, W).

    Raises:
        ValueError: a package is missing, or the outputs differ.
    """
    try:
        import onnx  # noqa: F401
        import onnxruntime
        import onnxscript  # noqa: F401
    except ModuleNotFoundError as error:
        raise ValueError(
            f"format=onnx: requires the package {error.name}. Run pip install -e '.[export]'."
        ) from error
    set_memory_format(denoiser.net, channels_last=False)
    inputs = _random_inputs(denoiser, 2, image_shape)
    batch = torch.export.Dim("batch", min=1)
    with _silence_exporter():
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
    session = onnxruntime.InferenceSession(str(file), providers=["CPUExecutionProvider"])
    difference = largest = 0.0
    batch_sizes = (1, 3, 16)
    for batch_size in batch_sizes:
        inputs = _random_inputs(denoiser, batch_size, image_shape)
        with torch.inference_mode():
            expected: Tensor = denoiser(*inputs.values())
        arrays = {name: value.numpy() for name, value in inputs.items()}
        (x0_hat,) = session.run(["x0_hat"], arrays)
        difference = max(difference, float((torch.from_numpy(x0_hat) - expected).abs().max()))
        largest = max(largest, float(expected.abs().max()))
    result = f"largest difference from PyTorch {difference:.1e}, largest value {largest:.2g}"
    if not difference <= _ONNX_TOLERANCE * max(1.0, largest):
        file.unlink()
        raise ValueError(f"format=onnx: {result}. Use format=safetensors.")
    print(f"ONNX, batch sizes {batch_sizes}: {result}.")


def _model_config(
    run: Run, denoiser: Denoiser, checkpoint: Path, weights: Weights
) -> dict[str, Any]:
    channels, height, width = run.image_shape
    parts = ("model", "schedule", "prediction", "sampler")
    return {
        "run": f"{run.config.name}/{run.path.name}",
        "checkpoint": checkpoint.name,
        "weights": run.resolve_weights(weights),
        "image": {"channels": channels, "height": height, "width": width, "range": [-1, 1]},
        "num_classes": denoiser.num_classes,
        "class_names": run.class_names,
        **{part: OmegaConf.to_container(run.config[part]) for part in parts},
    }


def _random_inputs(
    denoiser: Denoiser, batch_size: int, image_shape: tuple[int, int, int]
) -> dict[str, Tensor]:
    """Random noisy images and times, of which the last is 1; all classes and the null class."""
    generator = torch.Generator().manual_seed(batch_size)
    inputs = {
        "xt": torch.randn(batch_size, *image_shape, generator=generator),
        "t": torch.rand(batch_size, generator=generator),
    }
    inputs["t"][-1] = 1
    if denoiser.num_classes:
        inputs["label"] = torch.arange(batch_size) % (denoiser.num_classes + 1) - 1
    return inputs


@contextlib.contextmanager
def _silence_exporter() -> Iterator[None]:
    """The exporter prints remarks about its own code."""
    disabled = logging.root.manager.disable
    logging.disable(logging.ERROR)
    try:
        with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(disabled)
