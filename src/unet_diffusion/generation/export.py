"""scripts/export.py: the model of a run as one file for other programs.

model.safetensors   the weights of the network
model.onnx          the denoiser: xt (B, C, H, W), t (B,), label (B,) for class-conditional
                    networks, s (B,) for average velocities -> x0_hat (B, C, H, W)
config.json         how to build the network and how to sample
"""

import logging
import os
import warnings
from pathlib import Path
from typing import Literal

import torch
from omegaconf import OmegaConf
from pydantic import validate_call
from safetensors.torch import save_file

from unet_diffusion.config import STRICT
from unet_diffusion.diffusion.denoiser import Denoiser
from unet_diffusion.hardware import set_memory_format
from unet_diffusion.runs import Run, Weights, write_json

FILE_NAMES = {"safetensors": "model.safetensors", "onnx": "model.onnx"}


@validate_call(config=STRICT)
def export(
    run: str,
    format: Literal["safetensors", "onnx"] = "safetensors",
    checkpoint: str = "best",
    weights: Weights = "auto",
    output: str | None = None,
) -> Path:
    """Writes the model and config.json, and returns the model file; see conf/export.yaml."""
    opened = Run.open(run)
    used_weights = opened.resolve_weights(weights)
    used_checkpoint = opened.checkpoint_path(checkpoint)
    denoiser = opened.load_denoiser(checkpoint, weights)
    default = opened.path / "export" / f"{used_checkpoint.stem}-{used_weights}"
    directory = default if output is None else Path(output).expanduser()
    directory.mkdir(parents=True, exist_ok=True)
    file = directory / FILE_NAMES[format]
    temporary = directory / f".{file.name}.tmp"
    state = {name: value.contiguous() for name, value in denoiser.net.state_dict().items()}
    if format == "safetensors":
        save_file(state, temporary, metadata={"format": "pt"})
    else:
        export_onnx(denoiser, temporary, opened.image_shape)
    temporary.replace(file)
    channels, height, width = opened.image_shape
    parts = ("model", "schedule", "prediction", "sampler")
    config = {
        "run": f"{opened.config.name}/{opened.path.name}",
        "checkpoint": used_checkpoint.name,
        "weights": used_weights,
        "image": {"channels": channels, "height": height, "width": width, "range": [-1, 1]},
        "num_classes": denoiser.num_classes,
        "class_names": opened.class_names,
        **{part: OmegaConf.to_container(opened.config[part]) for part in parts},
    }
    write_json(directory / "config.json", config)
    num_parameters = sum(p.numel() for p in denoiser.parameters())
    print(f"{used_checkpoint.name}, {used_weights} weights, {num_parameters:,} parameters.")
    print(f"Saved to {os.path.relpath(file)} ({file.stat().st_size:,} bytes) and config.json.")
    return file


def export_onnx(denoiser: Denoiser, file: Path, image_shape: tuple[int, int, int]) -> None:
    """Exports the denoiser (in eval mode, on the CPU) for any batch size."""
    try:
        import onnx  # noqa: F401
        import onnxscript  # noqa: F401
    except ModuleNotFoundError as error:
        raise ValueError(
            f"format=onnx: requires the package {error.name}. Run pip install -e '.[export]'."
        ) from error
    set_memory_format(denoiser.net, channels_last=False)
    inputs = {"xt": torch.randn(3, *image_shape), "t": torch.tensor([0.2, 0.6, 1.0])}
    if denoiser.num_classes:
        inputs["label"] = torch.tensor([-1, 0, denoiser.num_classes - 1])
    if denoiser.has_average_velocity:
        inputs["s"] = torch.tensor([0.0, 0.3, 0.9])
    batch = torch.export.Dim("batch", min=1)
    logging.disable(logging.ERROR)  # remarks of the exporter about its own code
    with warnings.catch_warnings(action="ignore"):
        torch.onnx.export(
            denoiser,
            (),
            file,
            kwargs=inputs,
            input_names=list(inputs),
            output_names=["x0_hat"],
            dynamic_shapes={name: {0: batch} for name in inputs},
            dynamo=True,
            external_data=False,
            verbose=False,
        )
    logging.disable(logging.NOTSET)
