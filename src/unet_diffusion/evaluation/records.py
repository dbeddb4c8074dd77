"""Records of trainings and evaluations, read as data: they lie in run folders, which may come from somebody else.

What is not as train.py and evaluate.py write it counts as not being there.
"""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from unet_diffusion.paths import open_file

FIGURES = {
    "frechet_distance": ("Fréchet distance", ".3f"),
    "kernel_distance": ("kernel distance", ".4f"),
    "precision": ("precision", ".3f"),
    "recall": ("recall", ".3f"),
    "coverage": ("coverage", ".3f"),
}
"""Title and number format of each figure of `Closeness`."""
_MOST_BYTES = 1 << 24
_FACTS = ("run", "checkpoint", "weights", "images", "noise_seed")
_TEXTS = ("reference", "reference_mark", "feature_network", "sampler", "label", "weights")
_NUMBERS = ("images", "nfe", "seed", "guidance", "class_accuracy", "real_class_accuracy")


def read_metrics(file: Path) -> dict[str, Any]:
    """What metrics.json says of a training: `scores` by name, and `seconds`, `images_seen` and `parameters` where known."""
    content = _mapping(file)
    metrics: dict[str, Any] = {"scores": _numbers(content.get("scores"))}
    if is_number(content.get("seconds")):
        metrics["seconds"] = content["seconds"]
    return metrics | {key: content[key] for key in ("images_seen", "parameters") if _is_whole(content.get(key))}


def final_scores(run: Path) -> dict[str, float]:
    """The final scores in a run folder."""
    scores: dict[str, float] = read_metrics(run / "metrics.json")["scores"]
    return scores


def read_evaluation(file: Path) -> dict[str, Any]:
    """What evaluation.json says: its `levels`, its `generation`, and what they were taken of."""
    content = _mapping(file)
    record = {key: content[key] for key in _FACTS if _is_plain(content.get(key))}
    levels = content.get("levels")
    record["levels"] = [score for score in map(_level, levels) if score] if isinstance(levels, list) else []
    record["generation"] = _generation(content.get("generation"))
    return record


def _level(score: object) -> dict[str, Any] | None:
    if not isinstance(score, dict) or not is_number(score.get("percent")):
        return None
    answers = {name: _numbers(answer) for name, answer in score.items() if isinstance(answer, dict)}
    answers = {name: figures for name, figures in answers.items() if "psnr" in figures}
    return {"percent": score["percent"], **answers} if "network" in answers else None


def _generation(score: object) -> dict[str, Any] | None:
    if not isinstance(score, dict):
        return None
    figures = {part: _numbers(score.get(part)) for part in ("closeness", "floor", "floor_spread")}
    if not all(set(FIGURES) <= set(figures[part]) for part in ("closeness", "floor")) or not _is_whole(score.get("images")):
        return None
    texts = {key: score[key] for key in _TEXTS if isinstance(score.get(key), str)}
    numbers = {key: score[key] for key in _NUMBERS if is_number(score.get(key))}
    spread = figures["floor_spread"] if set(FIGURES) <= set(figures["floor_spread"]) else None
    return figures | {"floor_spread": spread} | texts | numbers


def _mapping(file: Path) -> Mapping[str, Any]:
    try:
        with open_file(file) as stream:
            raw = stream.read(_MOST_BYTES + 1)
        content = json.loads(raw) if len(raw) <= _MOST_BYTES else None
    except (OSError, ValueError, RecursionError):
        return {}
    return content if isinstance(content, dict) else {}


def _numbers(node: object) -> dict[str, float]:
    return {name: value for name, value in node.items() if is_number(value)} if isinstance(node, dict) else {}


def is_number(value: object) -> bool:
    """Also nan and the infinities, which diverged trainings have; but no whole number that is too large for a float."""
    return isinstance(value, float) or _is_whole(value)


def _is_whole(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and abs(value) < 10**18


def _is_plain(value: object) -> bool:
    return isinstance(value, str) or is_number(value)
