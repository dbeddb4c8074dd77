"""Checkpoints: tensors and plain data alone."""

from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file

from unet_diffusion.errors import UserError


def load_checkpoint(path: Path) -> dict[str, Any]:
    """Reads a checkpoint with `weights_only=True`, or a safetensors file; neither runs code."""
    content: Any
    try:
        if path.suffix == ".safetensors":
            weights = load_file(path)
            return {"state_dict": {f"denoiser.net.{name}": weights[name] for name in weights}}
        content = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # the unpickler raises many types for damaged files
        raise UserError(f"{path}: damaged, truncated, or contains more than tensors.") from error
    state = content.get("state_dict") if isinstance(content, dict) else None
    if not isinstance(state, dict) or not all(
        isinstance(name, str) and isinstance(value, torch.Tensor) for name, value in state.items()
    ):
        raise UserError(f"{path}: not a checkpoint of a run (no state_dict of tensors).")
    return dict(content)
