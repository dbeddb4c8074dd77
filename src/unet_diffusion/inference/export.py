"""`scripts/export.py`: a run's model as one file that other programs read, with its config beside it.

model.safetensors   the network's weights by name, without code
model.pt            the same as `torch.save` writes it; `torch.load(..., weights_only=True)` reads it
model.onnx          the denoiser: xt (B, C, H, W), t (B,), for networks with classes label (B,) -> x0_hat (B, C, H, W)
config.json         what was exported: how to build the network, and what is needed to draw with it
"""

import io
import os
import tempfile
from pathlib import Path
from typing import Any

import torch
from omegaconf import DictConfig, OmegaConf
from safetensors.torch import save

from unet_diffusion.checks import one_of
from unet_diffusion.diffusion.denoiser import Denoiser
from unet_diffusion.errors import UserError, first_line, printable
from unet_diffusion.inference.onnx_format import write_onnx
from unet_diffusion.paths import named_path
from unet_diffusion.runs import Run, write_json

FORMATS = {"safetensors": "model.safetensors", "torch": "model.pt", "onnx": "model.onnx"}
"""The file that each format is written to."""
_PARTS = ("model", "schedule", "prediction", "sampler")


def export(cfg: DictConfig) -> Path:
    """Writes the model that `conf/export.yaml` names, and its config.json; returns the model's file.

    Raises:
        UserError: the run cannot be used, the format is not known or needs a package that is not there, or the files cannot
            be written.
    """
    try:
        form = one_of("format", cfg.format, FORMATS)
    except ValueError as error:
        raise UserError(first_line(error)) from error
    run = Run.named(cfg)
    weights = run.chosen_weights(cfg.weights)
    checkpoint = run.checkpoint(cfg.checkpoint)
    denoiser = run.load_denoiser(cfg.checkpoint, torch.device("cpu"), weights)
    usual = run.path / "export" / f"{checkpoint.stem}-{weights}"
    folder = usual if cfg.output is None else named_path("output", cfg.output)
    file = folder / FORMATS[form]
    content = _content(denoiser, form, run.image_shape)
    described = _config(run, denoiser, checkpoint, weights)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        temporary = file.with_name(f".{file.name}.tmp")
        temporary.write_bytes(content)
        temporary.replace(file)
        written = {"Model": file, "Config": write_json(folder / "config.json", described)}
    except OSError as error:
        raise UserError(f"output={folder} cannot be written ({error}): name another folder") from error
    print(f"Exported {checkpoint.name}, {weights} weights, {sum(p.numel() for p in denoiser.parameters()):,} parameters.")
    for what, path in written.items():
        print(f"{what:<7}{printable(os.path.relpath(path))}   {path.stat().st_size:,} bytes")
    return file


def _content(denoiser: Denoiser, form: str, image_shape: tuple[int, int, int]) -> bytes:
    """What the model's file is to hold."""
    state = {name: value.contiguous() for name, value in denoiser.net.state_dict().items()}
    if form == "safetensors":
        return save(state, metadata={"format": "pt"})
    if form == "torch":
        stream = io.BytesIO()
        torch.save(state, stream)
        return stream.getvalue()
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "model.onnx"
        print(write_onnx(denoiser, file, image_shape))
        return file.read_bytes()


def _config(run: Run, denoiser: Denoiser, checkpoint: Path, weights: str) -> dict[str, Any]:
    channels, height, width = run.image_shape
    parts = {part: OmegaConf.to_container(run.config[part]) for part in _PARTS}
    return {
        "run": f"{run.config.name}/{run.path.name}",
        "checkpoint": checkpoint.name,
        "weights": weights,
        "image": {"channels": channels, "height": height, "width": width, "range": [-1, 1]},
        "num_classes": denoiser.num_classes,
        "class_names": run.class_names,
        **parts,
    }
