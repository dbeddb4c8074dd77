"""Runs as a report sees them: what was typed, what came of the training, and every evaluation."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml
from omegaconf import DictConfig, ListConfig, OmegaConf

from unet_diffusion.evaluation.scoring import SCALE
from unet_diffusion.runs import Run

_NEVER = ("callbacks", "logger", "output_dir", "cache_dir", "name", "debug", "hydra", "trainer.max_time", "trainer.max_steps")
_MOST_DIFFERENCES = 8
_HOW = (*SCALE, "sampler", "label", "guidance", "seed")


@dataclass(frozen=True)
class Evaluation:
    """One of evaluate.py's folders."""

    folder: Path
    record: dict[str, Any]


@dataclass(frozen=True)
class Reported:
    """A run with what is known of it."""

    run: Run
    typed: list[str]
    """Its overrides."""
    metrics: dict[str, Any]
    """Of the training; empty for one that did not end."""
    evaluations: list[Evaluation]
    """The oldest first; of those taken in the same way, the last."""

    @classmethod
    def read(cls, run: Run) -> "Reported":
        latest: dict[str, Evaluation] = {}
        for file in sorted((run.path / "evaluations").glob("*/evaluation.json")):
            record = _mapping(file)
            how = [record.get("generation", {}).get(key) for key in _HOW] + [record.get("checkpoint"), record.get("weights")]
            latest.pop(json.dumps(how), None)
            latest[json.dumps(how)] = Evaluation(file.parent, record)
        return cls(run, _overrides(run), _mapping(run.path / "metrics.json"), list(latest.values()))

    def last(self, part: str) -> Any:
        """The last evaluation's `generation` or `levels`; None where there is none."""
        return next((found.record[part] for found in reversed(self.evaluations) if found.record.get(part)), None)

    def value(self, key: str) -> Any:
        """Of a config's key, or of the choice made in a group."""
        chosen = OmegaConf.select(self.run.config, f"choices.{key}")
        value = chosen if chosen is not None else OmegaConf.select(self.run.config, key)
        return OmegaConf.to_container(value) if isinstance(value, (ListConfig, DictConfig)) else value


def differing_keys(runs: Sequence[Reported]) -> list[str]:
    """Keys and groups that were typed for a run and are not the same in all, or, where nothing was, groups that differ."""
    typed = [word.lstrip("+~").partition("=")[0] for one in runs for word in one.typed]
    groups = [str(group) for one in runs for group in one.run.config.get("choices", {})]
    keys = [key for key in dict.fromkeys([*typed, *groups]) if not key.startswith(_NEVER)]
    differing = [key for key in keys if len({json.dumps(one.value(key), default=str) for one in runs}) > 1]
    return differing[:_MOST_DIFFERENCES]


def run_names(runs: Sequence[Reported], differences: Sequence[str]) -> list[str]:
    """What to call the runs: by their names, by what was changed, or by their folders: the first that tells them apart."""
    by_name = [str(one.run.config.name) for one in runs]
    by_change = [", ".join(f"{key}={shown(one.value(key))}" for key in differences) for one in runs]
    by_folder = [f"{name} ({one.run.path.name})" for name, one in zip(by_name, runs, strict=True)]
    by_path = [str(one.run.path) for one in runs]
    return next(names for names in (by_name, by_change, by_folder, by_path) if len(set(names)) == len(runs))


def shown(value: object) -> str:
    """A config's value in a table."""
    if value is None:
        return ""
    return f"{value:g}" if isinstance(value, float) else str(value)


def _mapping(file: Path) -> dict[str, Any]:
    """A record of ours; empty where it is missing or damaged."""
    try:
        content = json.loads(file.read_text())
    except (OSError, ValueError):
        return {}
    return content if isinstance(content, dict) else {}


def _overrides(run: Run) -> list[str]:
    """What was typed for a run; read as plain words, as references in it mean nothing here."""
    try:
        content = yaml.safe_load((run.path / "overrides.yaml").read_text())
    except (OSError, ValueError, yaml.YAMLError):
        return []
    return [str(word) for word in content] if isinstance(content, list) else []
