"""The run directory: what train.py writes and everything else reads.

    config.yaml       the resolved config
    overrides.yaml    the overrides of the command line
    checkpoints/      best.ckpt (lowest validation loss) and last.ckpt
    previews/         PNG grids of the validations
    metrics.csv       logged values
    metrics.json      final scores
    events.*          TensorBoard
    samples/, evaluations/, denoised/, export/   from the other scripts

A saved model (`Pipeline.save_pretrained`, export.py) has model.safetensors, the keys of the config
that sampling needs, and a model card with the scores, README.md.

A run directory may come from an unknown origin: its config is read by `config.load_run_config`, and
its checkpoints with `weights_only=True`; neither runs code.
"""

import json
import secrets
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
import yaml
from omegaconf import DictConfig, OmegaConf
from safetensors.torch import load_file

from unet_diffusion.config import build_denoiser, load_run_config
from unet_diffusion.diffusion.denoiser import Denoiser
from unet_diffusion.hardware import prefers_channels_last, set_memory_format

Weights = Literal["auto", "ema", "raw"]
PRETRAINED = Path(__file__).parent / "pretrained"
_ONLY_IN_RUNS = "overrides.yaml"  # exports and loggers write files named config.yaml as well


def command_line(script: str) -> str:
    """The command of a script: as in a clone, or as in an installation without one."""
    is_installed = Path(sys.argv[0]).stem == "unet-diffusion"
    return f"unet-diffusion {script}" if is_installed else f"python scripts/{script}.py"


def unique_name() -> str:
    """A new directory name: the time and a random id."""
    return f"{time.strftime('%Y%m%d-%H%M%S')}-{secrets.token_hex(3)}"


@dataclass(frozen=True)
class Run:
    """A run directory and its config."""

    path: Path
    config: DictConfig
    selected_checkpoint: Path | None = None  # the file by which the run was opened

    @classmethod
    def open(cls, path: str | Path, key: str = "run") -> "Run":
        """Opens a run directory, a checkpoint file in one, or a saved model.

        `path` can also be `latest`, `latest:<name>`, `pretrained`, `pretrained:lesson` (in the
        package) or `hf://<user>/<name>` (on the Hugging Face Hub). Errors start with `key`.
        """
        kind, _, name = str(path).partition(":")
        if kind == "latest":
            path = _latest_run(path, key)
        elif kind == "pretrained":
            path = PRETRAINED / (name or "one_step")
        elif kind == "hf":
            path = _download(name.removeprefix("//"), key)
        path = Path(path).expanduser()
        if not path.exists():
            raise ValueError(f"{key}={path}: no such file or directory.")
        candidates = [path] if path.is_dir() else list(path.parents)[:2]
        for directory in candidates:
            if (directory / "config.yaml").is_file():
                config = load_run_config(directory / "config.yaml")
                checkpoint = None if path.is_dir() else path.resolve()
                return cls(directory.resolve(), config, checkpoint)
        inside = sorted(file.parent.name for file in path.glob("*/config.yaml"))
        hint = f" Runs in it: {', '.join(inside[-5:])}." if inside else ""
        raise ValueError(f"{key}={path}: not a run directory (it has no config.yaml).{hint}")

    def save_config(self, overrides: Sequence[str]) -> None:
        """Writes config.yaml and overrides.yaml."""
        self.path.mkdir(parents=True, exist_ok=True)
        OmegaConf.save(OmegaConf.create(list(overrides)), self.path / "overrides.yaml")
        write_atomically(self.path / "config.yaml", OmegaConf.to_yaml(self.config, resolve=True))

    @property
    def saved_model(self) -> Path | None:
        """The weights file of a saved model; None for a run directory with checkpoints."""
        file = self.path / "model.safetensors"
        return file if file.is_file() else None

    @property
    def output_dir(self) -> Path:
        """Where scripts write to by default: the run directory, but not the package or a cache."""
        if self.path.is_relative_to(PRETRAINED.resolve()):
            return Path("runs", "pretrained", self.path.name)
        if self.path.parent.name == "snapshots":  # the cache of the Hugging Face Hub
            repo_id = self.path.parents[1].name.removeprefix("models--").replace("--", "/")
            return Path("runs", "hf", repo_id)
        return self.path

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """(C, H, W) of the training images."""
        size = self.config.data.image_size
        height, width = (size, size) if isinstance(size, int) else size
        return self.config.data.channels, height, width

    @property
    def class_names(self) -> list[str]:
        """Names of the classes of the training images."""
        return [str(name) for name in self.config.get("class_names", [])]

    @property
    def overrides(self) -> list[str]:
        """The overrides of the command line, as strings."""
        file = self.path / "overrides.yaml"
        if not file.is_file():
            return []
        try:
            return [str(each) for each in yaml.safe_load(file.read_text(encoding="utf-8"))]
        except (yaml.YAMLError, TypeError, UnicodeDecodeError) as error:
            raise ValueError(f"{file}: damaged, not a list of overrides.") from error

    @property
    def metrics(self) -> dict[str, Any] | None:
        """The content of metrics.json; None if the run is not finished or the file is damaged."""
        return read_json(self.path / "metrics.json")

    def checkpoint_path(self, checkpoint: str = "best") -> Path:
        """File of the checkpoint `best` or `last`, or of the one by which the run was opened."""
        path = self.selected_checkpoint or self.saved_model
        path = path or self.path / "checkpoints" / f"{checkpoint}.ckpt"
        if not path.is_file():
            names = sorted(file.stem for file in (self.path / "checkpoints").glob("*.ckpt"))
            hint = f" It has {', '.join(names)}." if names else " It has no checkpoint yet."
            raise ValueError(f"checkpoint={checkpoint}: not in run {self.path}.{hint}")
        return path

    def resolve_weights(self, weights: Weights = "auto") -> Weights:
        """`ema` or `raw`; `auto` is the EMA if the run has one."""
        has_ema = bool(self.config.get("ema"))
        if weights == "ema" and not has_ema:
            raise ValueError(f"weights=ema: run {self.path} has ema=null. Use weights=raw.")
        if weights == "raw" and has_ema and self.saved_model:
            raise ValueError(f"weights=raw: {self.path} has the EMA only. Use weights=auto.")
        return "ema" if has_ema and weights != "raw" else "raw"

    def load_denoiser(
        self,
        checkpoint: str = "best",
        weights: Weights = "auto",
        device: torch.device | str = "cpu",
    ) -> Denoiser:
        """The trained denoiser in eval mode; see `Pipeline.from_pretrained` for the arguments."""
        path = self.checkpoint_path(checkpoint)
        weights = self.resolve_weights(weights)
        content = load_checkpoint(path)
        state = content["state_dict"]
        # With an EMA, Lightning saves it as `state_dict` and the raw weights separately.
        if weights == "raw" and "current_model_state" in content:
            state = content["current_model_state"]
        prefix = "denoiser."
        state = {k.removeprefix(prefix): v for k, v in state.items() if k.startswith(prefix)}
        denoiser = build_denoiser(self.config)
        try:
            denoiser.load_state_dict(state)
        except RuntimeError as error:
            raise ValueError(f"{path} does not fit {self.path / 'config.yaml'}: {error}") from error
        if not all(bool(torch.isfinite(value).all()) for value in state.values()):
            raise ValueError(f"{path}: the weights are not finite. Use another checkpoint.")
        device = torch.device(device)
        set_memory_format(denoiser.net, prefers_channels_last(device))
        return denoiser.eval().to(device)


def find_runs(paths: Sequence[str]) -> list[Run]:
    """All runs in or below the given directories, sorted by name and directory."""
    runs: dict[Path, Run] = {}
    for path in paths:
        found: dict[Path, Run] = {}
        for file in Path(path).expanduser().rglob(_ONLY_IN_RUNS):
            try:
                found[file.parent.resolve()] = Run.open(file.parent, "runs")
            except ValueError as error:  # one broken run does not hide the others
                print(f"Skipped: {error}", file=sys.stderr)
        if not found:
            raise ValueError(f"runs={path}: no run directories found.")
        runs |= found
    return sorted(runs.values(), key=lambda run: (str(run.config.name), run.path.name))


def _latest_run(value: str | Path, key: str) -> Path:
    """The newest run below runs/ for `latest`, or below runs/04_flow/ for `latest:04_flow`."""
    root = Path("runs", str(value).partition(":")[2])
    found = sorted(root.rglob(_ONLY_IN_RUNS), key=lambda file: file.stat().st_mtime)
    if not found:
        raise ValueError(f"{key}={value}: no runs below {root}.")
    return found[-1].parent


def _download(repo_id: str, key: str) -> Path:
    """Downloads a saved model from the Hugging Face Hub to its cache."""
    from huggingface_hub import snapshot_download

    files = ["config.yaml", "model.safetensors", "README.md"]
    try:
        return Path(snapshot_download(repo_id, allow_patterns=files))
    except (OSError, ValueError) as error:
        raise ValueError(f"{key}=hf://{repo_id}: the download failed ({error}).") from error


def load_checkpoint(path: Path) -> dict[str, Any]:
    """Reads a checkpoint with `weights_only=True`, or a safetensors file; neither runs code."""
    try:
        if path.suffix == ".safetensors":
            state = load_file(path)
            return {"state_dict": {f"denoiser.net.{name}": state[name] for name in state}}
        content = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # the unpickler raises many types for damaged files
        raise ValueError(f"{path}: damaged, truncated, or contains more than tensors.") from error
    if not isinstance(content, dict) or not isinstance(content.get("state_dict"), dict):
        raise ValueError(f"{path}: not a checkpoint of a run (no state_dict).")
    return content


def write_atomically(path: Path, content: str | bytes) -> None:
    """Writes a file completely or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.tmp")
    temporary.write_bytes(content.encode() if isinstance(content, str) else content)
    temporary.replace(path)


def write_json(path: Path, content: dict[str, Any]) -> None:
    """Writes JSON completely or not at all."""
    write_atomically(path, json.dumps(content, indent=2) + "\n")


def read_json(path: Path) -> dict[str, Any] | None:
    """Reads a JSON object; None if the file is missing, damaged or something else."""
    try:
        content = json.loads(path.read_text())
    except (OSError, ValueError):
        return None
    return content if isinstance(content, dict) else None
