"""scripts/export.py: the model of a run, for sharing and for other programs.

- safetensors: a saved model, see runs.py; all scripts open it like a run.
- onnx: model.onnx is the denoiser, with the inputs xt (B, C, H, W), t (B,), label (B,) for
  class-conditional networks, s (B,) for average velocities, and the output x0_hat (B, C, H, W);
  config.json has its parts and how to sample.
"""

import logging
import os
import warnings
from pathlib import Path
from typing import Literal

import torch
from omegaconf import OmegaConf
from pydantic import validate_call

from unet_diffusion.config import STRICT
from unet_diffusion.diffusion.denoiser import Denoiser
from unet_diffusion.generation.pipeline import Pipeline
from unet_diffusion.hardware import set_memory_format
from unet_diffusion.runs import Run, Weights, write_json

PARTS = ("model", "schedule", "prediction", "sampler")


@validate_call(config=STRICT)
def export(
    run: str,
    format: Literal["safetensors", "onnx"] = "safetensors",
    dtype: Literal["float32", "bfloat16"] = "float32",
    checkpoint: str = "best",
    weights: Weights = "auto",
    output: str | None = None,
) -> Path:
    """Writes the model and returns its file; see conf/export.yaml for the arguments."""
    opened = Run.open(run)
    pipeline = Pipeline.from_pretrained(
        opened, checkpoint=checkpoint, weights=weights, device="cpu"
    )
    default = opened.output_dir / "export" / f"{pipeline.checkpoint.stem}-{pipeline.weights}"
    directory = default if output is None else Path(output).expanduser()
    directory.mkdir(parents=True, exist_ok=True)
    if format == "safetensors":
        file = pipeline.save_pretrained(directory, getattr(torch, dtype))
    else:
        if dtype != "float32":
            raise ValueError(f"dtype={dtype}: requires format=safetensors.")
        file = directory / "model.onnx"
        temporary = directory / f".{file.name}.tmp"
        export_onnx(pipeline.denoiser, temporary, opened.image_shape)
        temporary.replace(file)
        channels, height, width = opened.image_shape
        config = {
            "run": f"{opened.config.name}/{opened.path.name}",
            "checkpoint": pipeline.checkpoint.name,
            "weights": pipeline.weights,
            "image": {"channels": channels, "height": height, "width": width, "range": [-1, 1]},
            "class_names": opened.class_names,
            **{part: OmegaConf.to_container(opened.config[part]) for part in PARTS},
        }
        write_json(directory / "config.json", config)
    print(f"{pipeline.checkpoint.name}, {pipeline.weights} weights: {os.path.relpath(file)}")
    return file


def export_onnx(denoiser: Denoiser, file: Path, image_shape: tuple[int, int, int]) -> None:
    """Exports the denoiser (in eval mode, on the CPU) for any batch size."""
    import onnx  # noqa: F401 - an error here names the package
    import onnxscript  # noqa: F401

    set_memory_format(denoiser.net, channels_last=False)
    inputs = {"xt": torch.randn(3, *image_shape), "t": torch.tensor([0.2, 0.6, 1.0])}
    if denoiser.num_classes:
        inputs["label"] = torch.tensor([-1, 0, denoiser.num_classes - 1])
    if denoiser.accepts_interval:
        inputs["s"] = torch.tensor([0.0, 0.3, 0.9])
    batch = torch.export.Dim("batch", min=1)
    logging.disable(logging.ERROR)  # warnings of the exporter
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
