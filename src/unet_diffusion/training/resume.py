"""`train.py resume=<run>`: going on with a run in its own folder."""

import csv
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import lightning as L
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override
from lightning.pytorch.loggers import CSVLogger
from omegaconf import DictConfig, ListConfig, OmegaConf

from unet_diffusion.checks import shortened
from unet_diffusion.errors import UserError
from unet_diffusion.runs import Run
from unet_diffusion.saved_checkpoint import load_checkpoint
from unet_diffusion.sweeps import is_finished, typed_for
from unet_diffusion.training.limits import check_sections
from unet_diffusion.training.survival import UnfinishedStep

_MAY_CHANGE = ("trainer", "callbacks", "logger", "speed", "debug", "cache_dir")
"""What a run may go on with otherwise than before; all else decides what it learns."""
_PLACES = (
    "dirpath",
    "dir",
    "save_dir",
    "sub_dir",
    "root_dir",
    "log_dir",
    "default_root_dir",
    "tracking_uri",
    "artifact_location",
)
"""Arguments of callbacks and loggers that say where they write."""
_TRAINER_GROUPS = {"accelerator": ("accelerator", "devices", "strategy"), "precision": ("precision",)}


@dataclass(frozen=True)
class Resumed:
    """A run that goes on."""

    run: Run
    """With the config that it goes on with."""
    checkpoint: Path | None
    """What it goes on from; None where it was killed before its first checkpoint: it starts again."""
    step: int
    """Optimizer steps done."""
    finished: bool
    """It had come to its end."""
    within: bool = False
    """The checkpoint was made within an optimizer step, by a validation between two of the batches that it accumulates."""

    @classmethod
    def named(cls, cfg: DictConfig, typed: Sequence[str]) -> "Resumed":
        """The run that `resume` names, with what else was typed.

        Raises:
            UserError: it is no run, its checkpoint is damaged, or something was typed that a run cannot change.
        """
        run = Run.open(str(cfg.resume), key="resume", trainable=True)
        overrides = [each for each in OverridesParser.create().parse_overrides(list(typed)) if each.key_or_group != "resume"]
        check_sections(run.config)
        _check_places(run.config, str(cfg.resume), {override.key_or_group for override in overrides})
        config = run.config.copy()
        before = typed_for(run.path)
        for override in overrides:
            _apply(override, cfg, config, repeated=override.input_line in before)
        config.cache_dir, config.data.cache_dir = cfg.cache_dir, cfg.data.cache_dir  # of this machine, not the run's
        if config.trainer.get("fast_dev_run"):
            raise UserError(f"resume={cfg.resume} does not go with trainer.fast_dev_run, which keeps nothing: leave it out")
        checkpoint = Path(run.chosen_checkpoint or run.path / "checkpoints" / "last.ckpt")
        if not checkpoint.exists():
            return cls(Run(run.path, config), None, 0, finished=False)
        content = load_checkpoint(checkpoint)
        step = content.get("global_step")
        if not isinstance(step, int):
            raise UserError(f"resume={checkpoint} is no checkpoint of a training: it knows no step")
        raised = any(override.key_or_group.startswith("trainer.max_") for override in overrides)
        finished = is_finished(run.path) and not raised
        return cls(Run(run.path, config), checkpoint, step, finished, within=UnfinishedStep.KEY in content)

    def prepare(self) -> None:
        """Writes the config that the run goes on with; keeps the scores of its former end under another name."""
        for left in self.run.path.rglob(".*.tmp"):
            left.unlink(missing_ok=True)  # of a write that was killed
        scores = self.run.path / "metrics.json"
        if scores.exists():
            scores.rename(scores.with_name(f"metrics-{self.step}.json"))
        self.run.write_config()

    def undo(self) -> None:
        """Gives the scores of its former end their name back."""
        kept = self.run.path / f"metrics-{self.step}.json"
        if kept.exists():
            kept.rename(kept.with_name("metrics.json"))

    def restore_metrics(self, trainer: L.Trainer, rows: list[dict[str, str]]) -> None:
        """Puts back the rows of metrics.csv, which Lightning's logger removes when it begins."""
        for logger in trainer.loggers:
            if isinstance(logger, CSVLogger) and rows and trainer.is_global_zero:
                writer = logger.experiment
                writer.metrics_keys = list(rows[0])
                with (self.run.path / "metrics.csv").open("w", newline="") as stream:
                    table = csv.DictWriter(stream, rows[0])
                    table.writeheader()
                    table.writerows(rows)

    def earlier_metrics(self) -> list[dict[str, str]]:
        """The rows of metrics.csv that were written before the checkpoint; later ones will come again."""
        path = self.run.path / "metrics.csv"
        if not path.is_file():
            return []
        with path.open(newline="") as stream:
            return [row for row in csv.DictReader(stream) if self._is_earlier(row)]

    def _is_earlier(self, row: dict[str, str]) -> bool:
        step = row.get("step") or ""
        if not step.isdigit():
            return False
        validated = any(value for name, value in row.items() if (name or "").startswith("val/"))
        return int(step) < self.step + (self.within and validated)


def _check_places(config: DictConfig, where: str, typed: set[str]) -> None:
    """Refuses a run whose callbacks or loggers write elsewhere than into its folder, unless that was typed again.

    Raises:
        UserError: so does one.
    """
    for group in ("callbacks", "logger", "averaging", "trainer"):
        for key, value in _leaves(config.get(group), group):
            path = Path(str(value))
            leaves = path.is_absolute() or ".." in path.parts or key.rpartition(".")[2] in _PLACES
            if isinstance(value, str) and leaves and key not in typed:
                raise UserError(
                    f"resume={where}: {key}={shortened(value)} in its config.yaml may lead out of the run's folder: "
                    f"if it is to, type {key}=... again"
                )


def _leaves(node: Any, key: str) -> Iterator[tuple[str, Any]]:
    if isinstance(node, DictConfig):
        for name, value in node.items():
            yield from _leaves(value, f"{key}.{name!s}")
    elif isinstance(node, ListConfig):
        for value in node:
            yield from _leaves(value, key)
    else:
        yield key, node


def _apply(override: Override, cfg: DictConfig, config: DictConfig, repeated: bool) -> None:
    """Takes one thing that was typed over into the run's config.

    Args:
        override: what was typed.
        cfg: what it was composed into.
        config: the run's.
        repeated: the run was started with the same word, which may have become another value (`data.root=photos`).

    Raises:
        UserError: a run cannot change it.
    """
    key = override.key_or_group
    if key in _TRAINER_GROUPS:
        for name in _TRAINER_GROUPS[key]:
            OmegaConf.update(config, f"trainer.{name}", cfg.trainer.get(name), force_add=True)
        return
    asked = cfg.choices.get(key, OmegaConf.select(cfg, key))
    if key.split(".")[0] in _MAY_CHANGE and not override.is_delete():
        OmegaConf.update(config, key, OmegaConf.select(cfg, key), force_add=True, merge=False)
        if key in cfg.choices:
            config.choices[key] = asked
        return
    if repeated:
        return
    before = config.choices[key] if key in config.get("choices", {}) else OmegaConf.select(config, key)
    if asked != before:
        raise UserError(
            f"resume={cfg.resume} goes on with {key}={_shown(before)}, not with {override.input_line}: leave it out, or start "
            f"a new run without resume= (what can change: trainer.*, callbacks.*, logger, speed.*, accelerator, precision)"
        )


def _shown(value: object) -> object:
    return OmegaConf.to_container(value) if OmegaConf.is_config(value) else value
