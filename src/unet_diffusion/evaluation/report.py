"""`scripts/report.py`: any runs, or a whole sweep, on one page: what differs, what came of it, and what it looks like."""

import json
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml
from matplotlib.figure import Figure
from omegaconf import DictConfig, ListConfig, OmegaConf

from unet_diffusion.errors import UserError
from unet_diffusion.evaluation.markup import Page, Table
from unet_diffusion.evaluation.scoring import SCALE, scale_of
from unet_diffusion.evaluation.words import FIGURES
from unet_diffusion.runs import Run, named_runs

_NEVER = ("callbacks", "logger", "output_dir", "cache_dir", "name", "debug", "hydra", "trainer.max_time", "trainer.max_steps")
_MOST_DIFFERENCES = 8
_HOW = (*SCALE, "sampler", "label", "guidance", "seed")


@dataclass(frozen=True)
class Reported:
    """A run with what is known of it."""

    run: Run
    typed: list[str]
    """Its overrides."""
    metrics: dict[str, Any]
    """Of the training; empty for one that did not end."""
    evaluations: list[dict[str, Any]]
    """evaluate.py's records, the oldest first; of those taken in the same way, the last."""

    @classmethod
    def read(cls, run: Run) -> "Reported":
        latest: dict[str, dict[str, Any]] = {}
        for file in sorted((run.path / "evaluations").glob("*/evaluation.json")):
            record = _mapping(file)
            how = [record.get("generation", {}).get(key) for key in _HOW] + [record.get("checkpoint"), record.get("weights")]
            latest.pop(json.dumps(how), None)
            latest[json.dumps(how)] = record
        return cls(run, _overrides(run), _mapping(run.path / "metrics.json"), list(latest.values()))

    @property
    def name(self) -> str:
        name, folder = str(self.run.config.name), self.run.path.name
        return name if name in folder else f"{name} ({folder})"

    def last(self, part: str) -> Any:
        """The last evaluation's `generation` or `levels`; None where there is none."""
        return next((record[part] for record in reversed(self.evaluations) if record.get(part)), None)

    def value(self, key: str) -> Any:
        """Of a config's key, or of the choice made in a group."""
        chosen = OmegaConf.select(self.run.config, f"choices.{key}")
        value = chosen if chosen is not None else OmegaConf.select(self.run.config, key)
        return OmegaConf.to_container(value) if isinstance(value, (ListConfig, DictConfig)) else value


def report(cfg: DictConfig) -> Path:
    """Writes the page that `conf/report.yaml` names; returns its folder.

    Raises:
        UserError: there are no runs, or the page cannot be written.
    """
    runs = [Reported.read(run) for run in named_runs(cfg)]
    output = Path(str(cfg.output)).expanduser()
    page = Page(str(cfg.title))
    differences = differing_keys(runs)
    _overview(page, runs, differences)
    _generation(page, runs)
    _denoising(page, runs)
    _plots(page, runs, differences)
    _grids(page, runs)
    try:
        written = page.write(output)
    except OSError as error:
        raise UserError(f"output={output} cannot be written ({error}): name another folder") from error
    for path in written:
        print(f"{'Page' if path.suffix == '.html' else 'Markdown':<9}{os.path.relpath(path)}")
    return output


def differing_keys(runs: Sequence[Reported]) -> list[str]:
    """Keys and groups that were typed for a run and are not the same in all, or, where nothing was, groups that differ."""
    typed = [word.lstrip("+~").partition("=")[0] for one in runs for word in one.typed]
    groups = [str(group) for one in runs for group in one.run.config.get("choices", {})]
    keys = [key for key in dict.fromkeys([*typed, *groups]) if not key.startswith(_NEVER)]
    differing = [key for key in keys if len({json.dumps(one.value(key), default=str) for one in runs}) > 1]
    return differing[:_MOST_DIFFERENCES]


def _overview(page: Page, runs: Sequence[Reported], differences: Sequence[str]) -> None:
    table = Table(["run", *differences, "test MSE", "test PSNR, dB", "time, s", "images seen", "parameters"])
    for one in runs:
        scores = one.metrics.get("scores", {})
        table.row(
            one.name,
            *(_shown(one.value(key)) for key in differences),
            _number(scores.get("test/mse"), ".4f"),
            _number(scores.get("test/psnr"), ".2f"),
            _number(one.metrics.get("seconds"), ".0f"),
            _number(one.metrics.get("images_seen"), ",d"),
            _number(one.metrics.get("parameters"), ",d"),
        )
    page.section("Runs", "Test scores are those of the noise levels that each run was trained on.")
    page.table(table)


def _generation(page: Page, runs: Sequence[Reported]) -> None:
    """A table for each number of images, judge and reference, as distances at different ones do not compare."""
    scored = [(one, record["generation"]) for one in runs for record in one.evaluations if record.get("generation")]
    titles = [title for title, _ in FIGURES.values()]
    best = {i + 1: min if "distance" in title else max for i, title in enumerate(titles)}
    rest = ("nfe", "guidance", "seed", "weights", "sampler")
    for scale in dict.fromkeys(scale_of(score) for _, score in scored):
        chosen = [(one, score) for one, score in scored if scale_of(score) == scale]
        table = Table(["run", *titles, "recognised", *rest], best=best)
        for one, score in chosen:
            figures = (f"{score['closeness'][name]:{form}}" for name, (_, form) in FIGURES.items())
            table.row(one.name, *figures, _number(score["class_accuracy"], ".1%"), *(_shown(score[key]) for key in rest))
        floor, spread = chosen[0][1]["floor"], chosen[0][1]["floor_spread"]
        real = (
            f"{floor[name]:{form}}" + (f" ± {spread[name]:{form}}" if spread else "") for name, (_, form) in FIGURES.items()
        )
        table.row("real training images", *real, *[""] * (1 + len(rest)), ranked=False)
        images, network, reference = scale
        page.section(f"Drawing: {images} images", f"Against the {reference}; features {network}.")
        page.table(table)


def _denoising(page: Page, runs: Sequence[Reported]) -> None:
    """PSNR, a row a run, a column a noise level."""
    scored = [(one, one.last("levels")) for one in runs if one.last("levels")]
    if not scored:
        return
    levels = sorted({score["percent"] for _, scores in scored for score in scores})
    table = Table(["run", *(f"{level:g}" for level in levels)], best={i + 1: max for i in range(len(levels))})

    def row(name: str, scores: Sequence[dict[str, Any]], answer: str) -> None:
        psnr = {score["percent"]: score[answer]["psnr"] for score in scores if answer in score}
        table.row(name, *(_number(psnr.get(level), ".2f") for level in levels), ranked=answer == "network")

    for one, scores in scored:
        row(one.name, scores, "network")
    most = max((scores for _, scores in scored), key=lambda scores: len(scores[0]))  # those with classical denoisers, too
    for answer in most[0]:
        if answer not in ("percent", "network"):
            row(answer.replace("_", " "), most, answer)
    page.section("Denoising", "PSNR in dB on the test images, a column a noise level; the best network of each level is bold.")
    page.table(table)


def _plots(page: Page, runs: Sequence[Reported], differences: Sequence[str]) -> None:
    """Scores over whatever number was swept."""
    for key in differences:
        values = [one.value(key) for one in runs]
        numbers = all(isinstance(value, (int, float)) and not isinstance(value, bool) for value in values)
        if not numbers or len(set(values)) < 3:
            continue
        drawn = [one.last("generation") for one in runs]
        comparable = len({scale_of(score) for score in drawn if score}) == 1
        found = {
            "test PSNR, dB": [one.metrics.get("scores", {}).get("test/psnr") for one in runs],
            "Fréchet distance": [score["closeness"]["frechet_distance"] if score and comparable else None for score in drawn],
        }
        page.section(f"Over {key}", "")
        for title, scores in found.items():
            points = [(value, score) for value, score in zip(values, scores, strict=True) if score is not None]
            if len(points) > 1:
                page.plot(f"{title} over {key}", _points(points, key, title))


def _grids(page: Page, runs: Sequence[Reported]) -> None:
    page.section(
        "Pictures", "What each run drew at its last validation: from the same noise where the networks take the same images."
    )
    for one in runs:
        drawn = sorted((one.run.path / "pictures").glob("drawn-*.png"))
        if drawn:
            page.image(one.name, drawn[-1])


def _points(points: Sequence[tuple[float, float]], key: str, title: str) -> Figure:
    figure = Figure(figsize=(5, 3), layout="constrained")
    axes = figure.subplots()
    alone = len({value for value, _ in points}) == len(points)  # more than one run at a value: points, no line through them
    axes.plot(*zip(*sorted(points), strict=True), "o-" if alone else "o")
    axes.set(xlabel=key, ylabel=title)
    axes.grid(alpha=0.3)
    return figure


def _number(value: float | None, form: str) -> str:
    return "" if value is None else f"{value:{form}}"


def _shown(value: object) -> str:
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
