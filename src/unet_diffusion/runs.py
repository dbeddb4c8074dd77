"""A run folder as an object: made by train.py, opened by everything that comes after.

    config.yaml       everything that was chosen, resolved
    overrides.yaml    what was typed
    checkpoints/      best.ckpt (lowest validation loss) and last.ckpt
    pictures/         PNG grids
    metrics.csv       what was logged, and when
    metrics.json      the final scores
    events.*          the same for TensorBoard, with pictures

A run folder may come from somebody else: its config is read as data, its classes must be this project's own, and its
checkpoints are read with `weights_only=True`, which runs no code.
"""

import contextlib
import json
import secrets
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from omegaconf import DictConfig, ListConfig, OmegaConf
from torch import Tensor, nn

from unet_diffusion.checks import image_size_of
from unet_diffusion.diffusion.denoiser import Denoiser
from unet_diffusion.errors import UserError, first_line
from unet_diffusion.parts import build, build_denoiser
from unet_diffusion.paths import files_below, named_path
from unet_diffusion.saved_checkpoint import is_state, load_checkpoint
from unet_diffusion.saved_config import read_config
from unet_diffusion.training.hardware import channels_last_is_faster, lay_out

_BEFORE_CONFIG = frozenset({"overrides.yaml", ".config.yaml.tmp"})
"""What a run folder holds before its config is there; without one it is no run yet."""


def unique_name() -> str:
    """A folder name that no other run has: the time and a short random id."""
    return f"{time.strftime('%Y%m%d-%H%M%S')}-{secrets.token_hex(3)}"


def is_unbegun(folder: Path) -> bool:
    """Whether it is an empty folder, or that of a run that was killed before it had written what it is."""
    return folder.is_dir() and {entry.name for entry in folder.iterdir()} <= _BEFORE_CONFIG


def remove_if_empty(folder: Path) -> None:
    """Removes a folder made for a run that came to nothing, and the folder above it; only where they are empty."""
    with contextlib.suppress(OSError):
        folder.rmdir()
        folder.parent.rmdir()


@dataclass(frozen=True)
class Run:
    """One training's folder."""

    path: Path
    config: DictConfig
    chosen_checkpoint: str | None = None
    """The checkpoint that was named when the run was opened, if one was."""

    @classmethod
    def create(cls, path: Path, config: DictConfig, overrides: Sequence[str]) -> "Run":
        """Makes the folder and writes the config into it.

        Raises:
            UserError: there is something in it already, or it cannot be written.
        """
        resolved = OmegaConf.create(OmegaConf.to_container(config, resolve=True))
        assert isinstance(resolved, DictConfig)
        run = cls(path, resolved)
        try:
            if is_unbegun(path):
                for entry in path.iterdir():
                    entry.unlink()
                path.rmdir()
            path.mkdir(parents=True)
            OmegaConf.save(OmegaConf.create(list(overrides)), path / "overrides.yaml")
            run.write_config()
        except OSError as error:
            remove_if_empty(path.parent)
            raise UserError(
                f"output_dir: the run folder {path} cannot be made ({error}): name another output_dir or run_dir"
            ) from error
        return run

    def write_config(self) -> None:
        """Writes the config into the folder, whole or not at all."""
        temporary = self.path / ".config.yaml.tmp"
        OmegaConf.save(self.config, temporary)
        temporary.replace(self.path / "config.yaml")

    @classmethod
    def open(cls, where: str | Path, key: str = "run", trainable: bool = False) -> "Run":
        """Opens a run by its folder or by a checkpoint in it.

        Args:
            where: the folder or the checkpoint.
            key: what the user named it by, for what is said.
            trainable: the whole config is to be built, not only what draws: all that it names is checked.

        Raises:
            UserError: it is no run, or its config is damaged or names classes that are not this project's.
        """
        named = named_path(key, where)
        if not named.exists():
            raise UserError(f"{key}={where} does not exist: name a run folder, such as runs/lesson/<time>-<id>")
        candidates = [named] if named.is_dir() else list(named.parents)[:2]
        folder = next((path for path in candidates if (path / "config.yaml").is_file()), None)
        if folder is None:
            raise UserError(f"{key}={where} is no run: a run folder holds config.yaml, written by train.py")
        config = read_config(folder / "config.yaml", f"{key}={where}", trainable)
        return cls(folder.resolve(), config, chosen_checkpoint=None if named.is_dir() else str(named.resolve()))

    @classmethod
    def named(cls, cfg: DictConfig) -> "Run":
        """Opens the run that a script's config names by `run`.

        Raises:
            UserError: it names none, or what it names is no run.
        """
        if OmegaConf.is_missing(cfg, "run"):
            raise UserError("run= is needed: name a run folder, such as run=runs/lesson/<time>-<id>, or a checkpoint in one")
        return cls.open(str(cfg.run))

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """(C, H, W) of the run's images."""
        return (self.config.data.channels, *image_size_of(self.config.data.image_size))

    def checkpoint(self, which: str = "best") -> Path:
        """The file of the `best` (lowest validation loss) or `last` checkpoint, or the one that the run was opened by.

        Raises:
            UserError: there is none.
        """
        path = Path(self.chosen_checkpoint or self.path / "checkpoints" / f"{which}.ckpt")
        if not path.is_file():
            there = sorted(file.stem for file in (self.path / "checkpoints").glob("*.ckpt"))
            hint = f"it has {', '.join(there)}: try checkpoint={there[0]}" if there else "did its training reach a validation?"
            raise UserError(f"run={self.path} has no checkpoint {which}: {hint}")
        return path

    @property
    def class_names(self) -> list[str]:
        """The names of the classes that the run's data has."""
        names = self.config.get("class_names")
        return [str(name) for name in names] if isinstance(names, ListConfig) else []

    def chosen_weights(self, weights: str = "auto") -> str:
        """`ema` or `raw`: what `weights` means for this run; `auto` is the average where the run kept one.

        Raises:
            UserError: it is none of these, or the run kept no average.
        """
        kept = bool(self.config.get("averaging"))
        if weights not in ("auto", "ema", "raw"):
            raise UserError(f"weights={weights} must be ema, raw or auto")
        if weights == "ema" and not kept:
            raise UserError(f"weights=ema: run={self.path} kept no average, as it had averaging=none: try weights=raw")
        return "ema" if kept and weights != "raw" else "raw"

    def load_denoiser(self, which: str, device: torch.device, weights: str = "auto") -> Denoiser:
        """The trained denoiser on `device`, in eval mode.

        Args:
            which: `best` or `last` checkpoint.
            device: where it is to be.
            weights: `ema`: the moving average; `raw`: those of the last step; `auto`: the average where the run kept one.

        Raises:
            UserError: the checkpoint is missing, damaged, holds more than plain data, does not fit the run's network, or has no
                such weights.
        """
        path = self.checkpoint(which)
        content = load_checkpoint(path)
        # Lightning saves an average as `state_dict`, and the live weights beside it
        live_beside = self.chosen_weights(weights) == "raw" and "current_model_state" in content
        state = content["current_model_state" if live_beside else "state_dict"]
        if not is_state(state):
            raise UserError(f"{path} is no checkpoint of a run: its current_model_state is no dictionary of tensors")
        prefix = "denoiser."
        own = {n.removeprefix(prefix): value for n, value in state.items() if n.startswith(prefix)}
        self._check_shapes(own, path)
        denoiser = build_denoiser(self.config)
        self._load(denoiser, own, path)
        self._check_answer(denoiser.eval(), path)
        lay_out(denoiser, channels_last_is_faster(device))
        return denoiser.to(device)

    def _check_shapes(self, state: dict[str, Tensor], path: Path) -> None:
        """Whether the network fits the checkpoint, before it is built: a config can describe one that fills the memory."""
        try:
            with torch.device("meta"):  # tensors that have a shape and no content
                shapes = build(self.config, "model")
        except UserError:
            return  # it will be said when it is built in earnest; a network may also not suit such tensors
        self._load(shapes, {n.removeprefix("net."): value for n, value in state.items()}, path, assign=True)

    def _load(self, module: nn.Module, state: dict[str, Tensor], path: Path, assign: bool = False) -> None:
        try:
            module.load_state_dict(state, assign=assign)
        except RuntimeError as error:
            complaints = [line.strip() for line in str(error).splitlines()[1:]] or [str(error)]
            more = f" and {len(complaints) - 1} more" if len(complaints) > 1 else ""
            raise UserError(
                f"{path} does not fit the network in {self.path / 'config.yaml'}: {complaints[0][:200]}{more}"
            ) from error

    def _check_answer(self, denoiser: Denoiser, path: Path) -> None:
        """Whether the network answers to an image of the run's at all, and its weights are numbers."""
        if not all(bool(torch.isfinite(value).all()) for value in denoiser.state_dict().values()):
            raise UserError(f"{path} holds weights that are not finite: take another checkpoint of the run")
        image = torch.zeros(1, *self.image_shape)
        shape = "x".join(map(str, self.image_shape))
        try:
            with torch.inference_mode():
                answer = denoiser(image, torch.ones(1))
        except (RuntimeError, TypeError) as error:
            raise UserError(f"{self.path}: the network does not take the run's {shape} images ({first_line(error)})") from error
        if answer.shape != image.shape:
            raise UserError(f"{self.path}: the network does not answer the run's {shape} images in their shape")
        if not bool(torch.isfinite(answer).all()):
            raise UserError(f"{path}: the network answers with numbers that are not finite: take another checkpoint of the run")


def named_runs(cfg: DictConfig) -> list[Run]:
    """The runs in the folders that a script's config names by `runs`, in the order of their names and folders.

    Raises:
        UserError: it names none, or there are none.
    """
    if OmegaConf.is_missing(cfg, "runs"):
        raise UserError("runs= is needed: name a folder above some run folders, such as runs=runs/road, or several: runs=[a,b]")
    found: dict[Path, Run] = {}
    for named in cfg.runs if isinstance(cfg.runs, ListConfig) else [cfg.runs]:
        folder = named_path("runs", named)
        below = {file.parent for file in files_below(folder) if file.name == "config.yaml"}
        if not below:
            raise UserError(f"runs={named} holds no runs: name a folder above some run folders, such as a sweep's")
        found |= {path.resolve(): Run.open(path) for path in below}
    if not found:
        raise UserError("runs=[] names no folder: name one above some run folders, such as runs=runs/road")
    return sorted(found.values(), key=lambda run: (str(run.config.name), run.path.name))


def write_json(path: Path, content: dict[str, Any]) -> Path:
    """Writes `content` as JSON, whole or not at all, making the folder where needed; returns where."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.tmp")
    temporary.write_text(json.dumps(content, indent=2, allow_nan=False) + "\n")
    return temporary.replace(path)
