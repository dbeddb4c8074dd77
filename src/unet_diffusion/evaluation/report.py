"""`scripts/report.py`: any runs, or a whole sweep, on one page: what differs, what came of it, and what it looks like."""

import math
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from matplotlib import colormaps, rc_context
from matplotlib.figure import Figure
from omegaconf import DictConfig, ListConfig

from unet_diffusion.errors import UserError, printable
from unet_diffusion.evaluation.markup import Page, Table
from unet_diffusion.evaluation.records import FIGURES, is_number
from unet_diffusion.evaluation.reported import HOW, Reported, differing_keys, run_names, shown
from unet_diffusion.evaluation.scoring import scale_of
from unet_diffusion.paths import named_path
from unet_diffusion.runs import named_runs

_FACTS = {
    "class_accuracy": "recognised",
    "nfe": "NFE",
    "guidance": "guidance",
    "seed": "seed",
    "weights": "weights",
    "sampler": "sampler",
}
"""What the table of drawings has beside `FIGURES`, with its titles."""


@rc_context({"text.parse_math": False})  # a name with a $ in it is a name, not a formula
def report(cfg: DictConfig) -> Path:
    """Writes the page that `conf/report.yaml` names; returns its folder.

    Raises:
        UserError: there are no runs, the page cannot be written, or there is no such column.
    """
    columns = _columns(cfg.columns)
    runs = [Reported.read(run) for run in named_runs(cfg)]
    output = named_path("output", cfg.output)
    page = Page(printable(cfg.title))
    differences = differing_keys(runs)
    named = dict(zip(run_names(runs, differences), runs, strict=True))
    _overview(page, named, differences)
    _generation(page, named, columns)
    _drawings(page, named)
    _denoising(page, named)
    _plots(page, runs, differences)
    try:
        written = page.write(output)
    except OSError as error:
        raise UserError(f"output={output} cannot be written ({error}): name another folder") from error
    for path in written:
        print(f"{'Page' if path.suffix == '.html' else 'Markdown':<9}{os.path.relpath(path)}")
    return output


def _columns(asked: object) -> list[str]:
    known = [*FIGURES, *_FACTS]
    if asked is None:
        return known
    if not isinstance(asked, ListConfig) or not asked or not all(column in known for column in asked):
        raise UserError(f"columns={asked} must be a list of some of these: {', '.join(known)}")
    return [str(column) for column in asked]


def _overview(page: Page, named: Mapping[str, Reported], differences: Sequence[str]) -> None:
    table = Table(["run", *differences, "test MSE", "test PSNR, dB", "time, s", "images seen", "parameters"])
    for name, one in named.items():
        scores = one.metrics["scores"]
        table.row(
            name,
            *(shown(one.value(key)) for key in differences),
            _number(scores.get("test/mse"), ".4f"),
            _number(scores.get("test/psnr"), ".2f"),
            _number(one.metrics.get("seconds"), ".0f"),
            _number(one.metrics.get("images_seen"), ",d"),
            _number(one.metrics.get("parameters"), ",d"),
        )
    page.section("Runs", "Test scores are those of the noise levels that each run was trained on.")
    page.table(table)


def _generation(page: Page, named: Mapping[str, Reported], columns: Sequence[str]) -> None:
    """A table for each number of images, judge and reference, as distances at different ones do not compare."""
    scored = [(name, found) for name, one in named.items() for found in one.drawings]
    titles = [FIGURES[column][0] if column in FIGURES else _FACTS[column] for column in columns]
    best = {i + 1: min if "distance" in column else max for i, column in enumerate(columns) if column in FIGURES}
    for scale in dict.fromkeys(scale_of(found.record["generation"]) for _, found in scored):
        chosen = [(name, found) for name, found in scored if scale_of(found.record["generation"]) == scale]
        table = Table(["run", *titles], best=best)
        for name, found in chosen:
            alike = [other for of, other in chosen if of == name]
            differing = [key for key in HOW if key not in columns and len({str(other.how(key)) for other in alike}) > 1]
            table.row(
                ", ".join([name, *(f"{key} {shown(found.how(key))}" for key in differing)]),
                *(_figure(found.record["generation"], column) for column in columns),
            )
        real = (_of_real_images(chosen[0][1].record["generation"], column) for column in columns)
        table.row("real training images", *real, ranked=False)
        images, network, reference = scale[:3]
        page.section(f"Drawing: {images} images", f"Against the {reference}; features {network}.")
        page.table(table)


def _figure(score: Mapping[str, Any], column: str) -> str:
    if column in FIGURES:
        return f"{score['closeness'][column]:{FIGURES[column][1]}}"
    return _number(score.get(column), ".1%") if column == "class_accuracy" else shown(score.get(column))


def _of_real_images(score: Mapping[str, Any], figure: str) -> str:
    if figure not in FIGURES:
        return _number(score.get("real_class_accuracy"), ".1%") if figure == "class_accuracy" else ""
    spread = f" ± {score['floor_spread'][figure]:{FIGURES[figure][1]}}" if score["floor_spread"] else ""
    return f"{score['floor'][figure]:{FIGURES[figure][1]}}{spread}"


def _drawings(page: Page, named: Mapping[str, Reported]) -> None:
    """What was scored, with its score; of runs that were not, what they drew while they were trained."""
    captions, files = [], []
    for name, one in named.items():
        scored = [found for found in one.drawings if (found.folder / "drawn.png").is_file()]
        drawn = sorted((one.run.path / "pictures").glob("drawn-*.png"))
        if scored:
            score = scored[-1].record["generation"]
            cost = f", {score['nfe']} NFE" if score.get("nfe") else ""
            distance, floor = (score[part]["frechet_distance"] for part in ("closeness", "floor"))
            captions.append(f"{name}\ndistance {distance:.2f} (real {floor:.2f}){cost}")
            files.append(scored[-1].folder / "drawn.png")
        elif drawn:
            captions.append(name)
            files.append(drawn[-1])
    page.section("Pictures", "")
    page.images("drawn", captions, files)


def _denoising(page: Page, named: Mapping[str, Reported]) -> None:
    """PSNR, a row a run, a column a noise level, and the same as curves; apart for each schedule, dataset and noise."""
    found = [(scale, name, scores) for name, one in named.items() for scale, scores in one.denoising().items()]
    scales = list(dict.fromkeys(scale for scale, _, _ in found))
    for scale in scales:
        answers = {name: (scores, "network") for of, name, scores in found if of == scale}
        most = max((scores for scores, _ in answers.values()), key=lambda scores: len(scores[0]))
        others = [answer for answer in most[0] if answer not in ("percent", "network")]
        answers |= {answer.replace("_", " "): (most, answer) for answer in others}
        levels = sorted({score["percent"] for scores, _ in answers.values() for score in scores})
        table = Table(["run", *(f"{level:g}" for level in levels)], best={i + 1: max for i in range(len(levels))})
        curves = {}
        for name, (scores, answer) in answers.items():
            psnr = {score["percent"]: score[answer]["psnr"] for score in scores if answer in score}
            table.row(name, *(_number(psnr.get(level), ".2f") for level in levels), ranked=answer == "network")
            curves[name] = (psnr, answer == "network")
        schedule, data, size, images, seed = scale
        title = "Denoising" if len(scales) == 1 else f"Denoising: {schedule} schedule, {data} at {size}"
        about = f"PSNR in dB on the {images} test images of {data} at {size}, {schedule} schedule, noise seed {seed}"
        page.section(title, f"{about}; a column a noise level, the best network of each level is bold.")
        page.table(table)
        page.plot("PSNR over the noise level", _curves(curves))


def _plots(page: Page, runs: Sequence[Reported], differences: Sequence[str]) -> None:
    """Scores over whatever number was swept."""
    for key in differences:
        values = [one.value(key) for one in runs]
        if not all(is_number(value) for value in values) or len(set(values)) < 3:
            continue
        drawn = [one.drawings[-1] if one.drawings else None for one in runs]
        alike = [name for name in ("label", "guidance", "seed", "weights", "checkpoint") if name != key]
        comparable = len({(scale_of(f.record["generation"]), *(str(f.how(name)) for name in alike)) for f in drawn if f}) == 1
        found = {
            "test PSNR, dB": [one.metrics["scores"].get("test/psnr") for one in runs],
            "Fréchet distance": [
                f.record["generation"]["closeness"]["frechet_distance"] if f and comparable else None for f in drawn
            ],
        }
        page.section(f"Over {key}", "")
        for title, scores in found.items():
            points = [(x, y) for x, y in zip(values, scores, strict=True) if y is not None and math.isfinite(x + y)]
            if len(points) > 1:
                page.plot(f"{title} over {key}", _points(points, key, title))


def _curves(curves: Mapping[str, tuple[Mapping[float, float], bool]]) -> Figure:
    """PSNR over the noise level; those of networks drawn through, in colours from the first to the last."""
    figure = Figure(figsize=(7, 4), layout="constrained")
    axes = figure.subplots()
    networks = sum(is_network for _, is_network in curves.values())
    colours = iter(colormaps["turbo"]([0.1 + 0.8 * i / max(1, networks - 1) for i in range(networks)]))
    for name, (points, is_network) in curves.items():
        if is_network:
            axes.plot(*zip(*sorted(points.items()), strict=True), "o-", markersize=3, label=name, color=next(colours))
        else:
            axes.plot(*zip(*sorted(points.items()), strict=True), "--", linewidth=1, label=name)
    axes.set(xlabel="noise level t", ylabel="PSNR, dB")
    axes.grid(alpha=0.3)
    figure.legend(loc="outside right upper", fontsize=8)
    return figure


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
