"""scripts/export.py: the model of a run, for sharing and for other programs.

- safetensors: a saved model, see runs/saved_model.py; all scripts open it like a run.
- onnx: model.onnx has the inputs xt (B, C, H, W), t (B,), label (B,) for class-conditional
  networks, and the output x0_hat (B, C, H, W). Of networks for average velocities it has the
  further input s (B,) and the output average_velocity u, with xs = xt - (t - s) * u.
  config.json has its parts and how to sample.
"""

import logging
import os
import warnings
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor, nn

from unet_diffusion.diffusion.denoiser import Denoiser
from unet_diffusion.errors import UserError
from unet_diffusion.experiment.build import model_part
from unet_diffusion.experiment.schema import PathStr, Schema
from unet_diffusion.generation.pipeline import Pipeline
from unet_diffusion.hardware import set_memory_format
from unet_diffusion.runs.files import write_json
from unet_diffusion.runs.run import Run, Weights

PARTS = ("schedule", "prediction", "sampler")


class Arguments(Schema):
    """The keys of conf/export.yaml."""

    run: PathStr
    format: Literal["safetensors", "onnx"]
    dtype: Literal["float32", "bfloat16"]
    checkpoint: str
    weights: Weights
    output: PathStr | None


def export(arguments: Arguments) -> Path:
    """Writes the model and returns its file."""
    run, output = Run.open(arguments.run), arguments.output
    pipeline = Pipeline.from_pretrained(
        run, checkpoint=arguments.checkpoint, weights=arguments.weights, device="cpu"
    )
    default = run.output_dir / "export" / f"{pipeline.checkpoint.stem}-{pipeline.weights}"
    directory = default if output is None else Path(output).expanduser()
    directory.mkdir(parents=True, exist_ok=True)
    if arguments.format == "safetensors":
        file = pipeline.save_pretrained(directory, getattr(torch, arguments.dtype))
    else:
        if arguments.dtype != "float32":
            raise UserError(f"dtype={arguments.dtype}: requires format=safetensors.")
        file = directory / "model.onnx"
        temporary = directory / f".{file.name}.tmp"
        export_onnx(pipeline.denoiser, temporary, run.config.image_shape)
        temporary.replace(file)
        channels, height, width = run.config.image_shape
        config = {
            "run": f"{run.config.name}/{run.path.name}",
            "checkpoint": pipeline.checkpoint.name,
            "weights": pipeline.weights,
            "image": {"channels": channels, "height": height, "width": width, "range": [-1, 1]},
            "class_names": run.class_names,
            "model": model_part(run.config, pipeline.denoiser.net.num_classes),
            **{part: getattr(run.config, part) for part in PARTS},
        }
        write_json(directory / "config.json", config)
    print(f"{pipeline.checkpoint.name}, {pipeline.weights} weights: {os.path.relpath(file)}")
    return file


class AverageVelocity(nn.Module):
    """The average velocity of a denoiser as a module."""

    def __init__(self, denoiser: Denoiser) -> None:
        super().__init__()
        self.denoiser = denoiser

    def forward(self, xt: Tensor, t: Tensor, s: Tensor, label: Tensor | None = None) -> Tensor:
        """See `Denoiser.average_velocity`."""
        return self.denoiser.average_velocity(xt, t, s, label)


def export_onnx(denoiser: Denoiser, file: Path, image_shape: tuple[int, int, int]) -> None:
    """Exports the denoiser (in eval mode, on the CPU) for any batch size."""
    import onnx  # noqa: F401 - an error here names the package
    import onnxscript  # noqa: F401

    set_memory_format(denoiser.net, channels_last=False)
    inputs = {"xt": torch.randn(3, *image_shape), "t": torch.tensor([0.2, 0.6, 1.0])}
    if num_classes := denoiser.net.num_classes:
        inputs["label"] = torch.tensor([-1, 0, num_classes - 1])
    module: nn.Module = denoiser
    if denoiser.net.accepts_interval:
        inputs["s"] = torch.tensor([0.0, 0.3, 0.9])
        module = AverageVelocity(denoiser).eval()
    batch = torch.export.Dim("batch", min=1)
    logging.disable(logging.ERROR)  # warnings of the exporter
    with warnings.catch_warnings(action="ignore"):
        torch.onnx.export(
            module,
            (),
            file,
            kwargs=inputs,
            input_names=list(inputs),
            output_names=["average_velocity" if "s" in inputs else "x0_hat"],
            dynamic_shapes={name: {0: batch} for name in inputs},
            dynamo=True,
            external_data=False,
            verbose=False,
        )
    logging.disable(logging.NOTSET)
