"""Runs as a report sees them: what was typed, what came of the training, and every evaluation."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml
from omegaconf import DictConfig, ListConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from unet_diffusion.errors import printable
from unet_diffusion.evaluation.records import read_evaluation, read_metrics
from unet_diffusion.evaluation.scoring import SCALE
from unet_diffusion.runs import Run
from unet_diffusion.saved_config import plain_yaml

_NEVER = ("callbacks", "logger", "output_dir", "cache_dir", "name", "debug", "hydra")
_MOST_DIFFERENCES = 12
HOW = ("sampler", "label", "guidance", "seed", "weights", "checkpoint")
"""What two evaluations of one run's drawings can differ in."""


@dataclass(frozen=True)
class Evaluation:
    """One of evaluate.py's folders."""

    folder: Path
    record: dict[str, Any]

    def how(self, key: str) -> Any:
        """How it was taken: of its `generation`, or of the whole."""
        return self.record["generation"].get(key, self.record.get(key))


@dataclass(frozen=True)
class Reported:
    """A run with what is known of it."""

    run: Run
    typed: list[str]
    """Its overrides."""
    metrics: dict[str, Any]
    """Of the training; empty for one that did not end."""
    evaluations: list[Evaluation]
    """The oldest first."""

    @classmethod
    def read(cls, run: Run) -> "Reported":
        files = sorted((run.path / "evaluations").glob("*/evaluation.json"))
        return cls(
            run,
            _overrides(run),
            read_metrics(run.path / "metrics.json"),
            [Evaluation(file.parent, read_evaluation(file)) for file in files],
        )

    @property
    def drawings(self) -> list[Evaluation]:
        """Evaluations of drawings; of those taken in the same way, the last."""
        latest: dict[str, Evaluation] = {}
        for found in self.evaluations:
            if found.record["generation"]:
                how = json.dumps([str(found.how(key)) for key in (*SCALE, *HOW)])
                latest.pop(how, None)
                latest[how] = found
        return list(latest.values())

    def denoising(self) -> dict[tuple[str, ...], list[dict[str, Any]]]:
        """Scores level by level, for everything that they depend on beside the network: schedule, images, noise.

        Where there are several for the same, the last one's, and of earlier ones what it has not (such as classical denoisers).
        """
        merged: dict[tuple[str, ...], dict[float, dict[str, Any]]] = {}
        for found in self.evaluations:
            record = found.record
            for score in record["levels"]:
                of = (str(self.value("schedule")), str(self.value("data")), str(self.value("data.image_size")))
                scale = (*of, str(record.get("images")), str(record.get("noise_seed")))
                merged.setdefault(scale, {}).setdefault(score["percent"], {}).update(score)
        return {scale: [scores[percent] for percent in sorted(scores)] for scale, scores in merged.items()}

    def value(self, key: str) -> Any:
        """Of a config's key, or of the choice made in a group."""
        try:
            chosen = OmegaConf.select(self.run.config, f"choices.{key}")
            value = chosen if chosen is not None else OmegaConf.select(self.run.config, key)
        except OmegaConfBaseException:  # the words in overrides.yaml may be anything
            return None
        return OmegaConf.to_container(value) if isinstance(value, (ListConfig, DictConfig)) else value


def differing_keys(runs: Sequence[Reported]) -> list[str]:
    """Keys that were typed for a run, and groups, that are not the same in all: those typed first, a dozen at most."""
    typed = [word.lstrip("+~").partition("=")[0] for one in runs for word in one.typed]
    choices = [one.run.config.get("choices") for one in runs]
    groups = [str(group) for chosen in choices if isinstance(chosen, DictConfig) for group in chosen]
    keys = [key for key in dict.fromkeys([*typed, *groups]) if not key.startswith(_NEVER)]
    differing = [key for key in keys if len({json.dumps(one.value(key), default=str) for one in runs}) > 1]
    return differing[:_MOST_DIFFERENCES]


def run_names(runs: Sequence[Reported], differences: Sequence[str]) -> list[str]:
    """What to call the runs: by their names, by what was changed, or by their folders: the first that tells them apart."""
    by_name = [printable(one.run.config.name) for one in runs]
    by_change = [printable(", ".join(f"{key}={shown(one.value(key))}" for key in differences)) for one in runs]
    by_folder = [f"{name} ({printable(one.run.path.name)})" for name, one in zip(by_name, runs, strict=True)]
    by_path = [printable(one.run.path) for one in runs]
    return next(names for names in (by_name, by_change, by_folder, by_path) if len(set(names)) == len(runs))


def shown(value: object) -> str:
    """A config's value in a table."""
    if value is None:
        return ""
    return f"{value:g}" if isinstance(value, float) else printable(value)


def _overrides(run: Run) -> list[str]:
    """What was typed for a run; read as plain words, as references in it mean nothing here."""
    try:
        content = plain_yaml(run.path / "overrides.yaml", references=True)
    except (OSError, ValueError, yaml.YAMLError):
        return []
    return [word for word in content if isinstance(word, str)] if isinstance(content, list) else []
