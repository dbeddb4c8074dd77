"""The run directory: what train.py writes and everything else reads.

    config.yaml       the resolved config
    overrides.yaml    the overrides of the command line
    checkpoints/      best.ckpt (lowest validation loss) and last.ckpt
    previews/         PNG grids of the validations
    metrics.csv       logged values
    metrics.json      final scores
    events.*          TensorBoard
    samples/, evaluations/, denoised/, export/   from the other scripts

A saved model (runs/saved_model.py) has model.safetensors, the keys of the config
that sampling needs, and a model card with the scores, README.md.

A run directory may come from an unknown origin: its config is read by `experiment.saved`, and
its checkpoints with `weights_only=True`; neither runs code.
"""

import difflib
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
import yaml

from unet_diffusion.data.datamodule import ImageDataModule
from unet_diffusion.diffusion.denoiser import Denoiser
from unet_diffusion.errors import UserError
from unet_diffusion.experiment.build import build_datamodule, build_denoiser
from unet_diffusion.experiment.saved import (
    config_text,
    read_config,
    read_yaml,
    validate_config,
)
from unet_diffusion.experiment.schema import Recorded, RunConfig, TrainConfig, choice_or_value
from unet_diffusion.hardware import prefers_channels_last, set_memory_format
from unet_diffusion.runs.checkpoints import load_checkpoint
from unet_diffusion.runs.files import write_atomically
from unet_diffusion.runs.hub import download, repo_id_of
from unet_diffusion.runs.records import Metrics, read_record

Weights = Literal["auto", "ema", "raw"]
PRETRAINED = Path(__file__).parents[1] / "pretrained"
_ONLY_IN_RUNS = "overrides.yaml"  # exports and loggers write files named config.yaml as well


@dataclass(frozen=True)
class Run:
    """A run directory and its config."""

    path: Path
    config: RunConfig
    values: dict[str, Any]  # the content of config.yaml, unchecked
    selected_checkpoint: Path | None = None  # the file by which the run was opened

    @classmethod
    def open(cls, path: str | Path, key: str = "run") -> "Run":
        """Opens a run directory, a checkpoint file in one, or a saved model.

        `path` can also be `latest`, `latest:<name>`, `pretrained`, `pretrained:lesson` (in the
        package) or `hf://<user>/<name>` (on the Hugging Face Hub). Errors start with `key`.
        """
        directory, checkpoint = locate(path, key)
        _check_links(directory)
        values = read_config(directory / "config.yaml")
        config = validate_config(RunConfig, values, directory / "config.yaml")
        return cls(directory.resolve(), config, values, checkpoint)

    def value(self, key: str) -> Any:
        """The choice of a config group, or the value of a dotted key, of the whole config."""
        return choice_or_value(self.values, key)

    def datamodule(
        self, cache_dir: str | None = None, changes: dict[str, Any] | None = None
    ) -> ImageDataModule:
        """The data of the run, see `build_datamodule`."""
        return build_datamodule(self.config, changes, cache_dir)

    @property
    def saved_model(self) -> Path | None:
        """The weights file of a saved model; None for a run directory with checkpoints."""
        return saved_weights(self.path)

    @property
    def output_dir(self) -> Path:
        """Where scripts write to by default: the run directory, but not the package or a cache."""
        if self.path.is_relative_to(PRETRAINED.resolve()):
            return Path("runs", "pretrained", self.path.name)
        if self.path.parent.name == "snapshots":  # the cache of the Hugging Face Hub
            return Path("runs", "hf", repo_id_of(self.path))
        return self.path

    @property
    def class_names(self) -> list[str]:
        """Names of the classes of the training images."""
        return self.config.class_names

    @property
    def choices(self) -> dict[str, str]:
        """The choice of each config group."""
        choices = self.values.get("choices")
        return {str(k): str(v) for k, v in choices.items()} if isinstance(choices, dict) else {}

    @property
    def overrides(self) -> list[str]:
        """The overrides of the command line, as strings."""
        file = self.path / "overrides.yaml"
        if not file.is_file():
            return []
        overrides = read_yaml(file)
        if not isinstance(overrides, list):
            raise UserError(f"{file}: damaged, not a list of overrides.")
        return [str(override) for override in overrides]

    @property
    def metrics(self) -> Metrics | None:
        """The content of metrics.json; None if the run is not finished or the file is damaged."""
        return read_record(Metrics, self.path / "metrics.json")

    def checkpoint_path(self, checkpoint: str = "best") -> Path:
        """File of the checkpoint `best` or `last`, or of the one by which the run was opened."""
        path = self.selected_checkpoint or self.saved_model
        if path and checkpoint not in ("best", path.stem):
            raise UserError(f"checkpoint={checkpoint}: {path} is the only one. Omit checkpoint.")
        path = path or self.path / "checkpoints" / f"{checkpoint}.ckpt"
        if not path.is_file():
            names = sorted(file.stem for file in (self.path / "checkpoints").glob("*.ckpt"))
            hint = f" It has {', '.join(names)}." if names else " It has no checkpoint yet."
            raise UserError(f"checkpoint={checkpoint}: not in run {self.path}.{hint}")
        return path

    def resolve_weights(self, weights: Weights = "auto") -> Weights:
        """`ema` or `raw`; `auto` is the EMA if the run has one."""
        has_ema = self.config.ema is not None
        if weights == "ema" and not has_ema:
            raise UserError(f"weights=ema: run {self.path} has ema=null. Use weights=raw.")
        if weights == "raw" and has_ema and self.saved_model:
            raise UserError(f"weights=raw: {self.path} has the EMA only. Use weights=auto.")
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
        state = load_checkpoint(path)["state_dict"]
        prefix = "ema_denoiser." if weights == "ema" and not self.saved_model else "denoiser."
        state = {k.removeprefix(prefix): v for k, v in state.items() if k.startswith(prefix)}
        denoiser = build_denoiser(self.config, len(self.class_names))
        try:
            denoiser.load_state_dict(state)
        except RuntimeError as error:
            raise UserError(f"{path} does not fit {self.path / 'config.yaml'}: {error}") from error
        if not all(bool(torch.isfinite(value).all()) for value in denoiser.state_dict().values()):
            raise UserError(f"{path}: the weights are not finite. Use another checkpoint.")
        device = torch.device(device)
        set_memory_format(denoiser.net, prefers_channels_last(device))
        return denoiser.eval().to(device)


def locate(path: str | Path, key: str = "run") -> tuple[Path, Path | None]:
    """The directory of a run and, if `path` is a file in it, that checkpoint; see `Run.open`."""
    value = str(path)
    kind, _, name = value.partition(":")
    if kind == "latest":
        path = _latest_run(path, key)
    elif kind == "pretrained":
        path = PRETRAINED / (name or "one_step")
    elif kind == "hf":
        path = download(name.removeprefix("//"), key)
    path = Path(path).expanduser()
    if not path.exists():
        names = sorted(file.parent.name for file in PRETRAINED.glob("*/config.yaml"))
        known = ["latest", "pretrained", *(f"pretrained:{name}" for name in names)]
        close = difflib.get_close_matches(value, known, n=1, cutoff=0.5)
        others = f"Besides folders: {', '.join(known)}."
        hint = f" Did you mean {close[0]}? {others}" if close else ""
        raise UserError(f"{key}={value}: no such file or directory.{hint}")
    for directory in [path] if path.is_dir() else list(path.parents)[:2]:
        if (directory / "config.yaml").is_file():
            return directory, None if path.is_dir() else path.resolve()
    inside = sorted(file.parent.name for file in path.glob("*/config.yaml"))
    hint = f" Runs in it: {', '.join(inside[-5:])}." if inside else ""
    raise UserError(f"{key}={path}: not a run directory (it has no config.yaml).{hint}")


def saved_weights(directory: Path) -> Path | None:
    """The weights file of a saved model; None in a run directory with checkpoints."""
    file = directory / "model.safetensors"
    return file if file.is_file() else None


def save_config(
    path: Path, config: TrainConfig, recorded: Recorded, overrides: Sequence[str]
) -> None:
    """Writes config.yaml and overrides.yaml into a run directory."""
    path.mkdir(parents=True, exist_ok=True)
    write_atomically(path / "overrides.yaml", yaml.safe_dump(list(overrides), allow_unicode=True))
    write_atomically(path / "config.yaml", config_text(config, recorded))


def _check_links(directory: Path) -> None:
    """Refuses links that leave a run directory: what they name would be read or overwritten."""
    is_snapshot = directory.parent.name == "snapshots"  # the cache of the Hub consists of links
    root = (directory.parents[1] if is_snapshot else directory).resolve()
    for path in directory.rglob("*"):
        if directory / "wandb" in path.parents:  # links to its logs; nothing here reads them
            continue
        if path.is_symlink() and not path.resolve().is_relative_to(root):
            raise UserError(f"{path}: a link that leaves the run directory. Replace it by a copy.")


def find_runs(paths: Sequence[str]) -> list[Run]:
    """All runs in or below the given directories, sorted by name and directory."""
    runs: dict[Path, Run] = {}
    for path in paths:
        found: dict[Path, Run] = {}
        for file in Path(path).expanduser().rglob(_ONLY_IN_RUNS):
            try:
                found[file.parent.resolve()] = Run.open(file.parent, "runs")
            except UserError as error:  # one broken run does not hide the others
                print(f"Skipped: {error}", file=sys.stderr)
        if not found:
            raise UserError(f"runs={path}: no run directories found.")
        runs |= found
    return sorted(runs.values(), key=lambda run: (run.config.name, run.path.name))


def _latest_run(value: str | Path, key: str) -> Path:
    """The newest run below runs/ for `latest`, or below runs/04_flow/ for `latest:04_flow`."""
    root = Path("runs", str(value).partition(":")[2])
    found = sorted(root.rglob(_ONLY_IN_RUNS), key=lambda file: file.stat().st_mtime)
    if not found:
        raise UserError(f"{key}={value}: no runs below {root}.")
    return found[-1].parent
