"""scripts/report.py: runs side by side, as one HTML page and as Markdown."""

import base64
import os
import re
import shutil
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any

from matplotlib import rc_context
from matplotlib.figure import Figure
from pydantic import Field

from unet_diffusion.data.sources import read_image
from unet_diffusion.errors import UserError
from unet_diffusion.evaluation.figures import plot, plot_images
from unet_diffusion.evaluation.generation_scores import METRIC_FORMATS
from unet_diffusion.experiment.schema import PathStr, Schema
from unet_diffusion.runs.files import write_atomically
from unet_diffusion.runs.records import Evaluation, read_record
from unet_diffusion.runs.run import Run, find_runs
from unet_diffusion.templates import TEMPLATES

Row = dict[Any, Any]
CONDITIONS = ("num_samples", "feature_extractor", "reference", "reference_hash")
SETTINGS = ("sampler", "label", "guidance_scale", "seed", "weights", "checkpoint", "dtype")
"""What two sets of images of one run can differ in."""
COLUMNS = METRIC_FORMATS | {"class_accuracy": ".3f", "memorization_ratio": ".2f"}
COLUMNS |= dict.fromkeys(("nfe", "guidance_scale", "seed", "weights", "sampler"), "")
RESULTS = {"test MSE": ".4f", "test PSNR, dB": ".2f", "time, s": ".0f"}
RESULTS |= {"images seen": ",.0f", "parameters": ",.0f"}
_IGNORED = ("callbacks", "logger", "output_dir", "run_dir", "cache_dir", "sweep", "name", "hydra")


@dataclass
class Section:
    """A part of the report: a table of (text, is best) cells, and figures by title."""

    title: str
    text: str = ""
    header: Sequence[str] = ()
    rows: Sequence[Sequence[tuple[str, bool]]] = ()
    figures: dict[str, Figure] = field(default_factory=dict)


class Arguments(Schema):
    """The keys of conf/report.yaml."""

    runs: PathStr | list[PathStr]
    output: PathStr
    columns: Annotated[list[str], Field(min_length=1)] | None
    title: str


@rc_context({"text.parse_math": False})  # a $ in a name is no formula
def report(arguments: Arguments) -> Path:
    """Writes report.html and report.md into a directory and returns it."""
    runs, columns = arguments.runs, arguments.columns
    for column in columns or []:
        if column not in COLUMNS:
            raise UserError(f"columns={column}: expected some of {', '.join(COLUMNS)}.")
    found = find_runs([runs] if isinstance(runs, str) else runs)
    differences = differing_keys(found)
    named = dict(zip(run_names(found, differences), found, strict=True))
    trainings = [
        {"run": name} | {key: config_value(run, key) for key in differences} | training_results(run)
        for name, run in named.items()
    ]
    generations, psnr = read_evaluations(named)
    formats = {"run": ""} | RESULTS | dict.fromkeys(differences, "")  # scores first
    text = "Test scores are at the noise levels of each run's training, without class labels."
    sections = [
        Section("Runs", text, list(formats), table(trainings, formats)),
        *generation_tables(generations, columns or list(COLUMNS)),
        generated_images(generations),
        distance_over_nfe(generations),
        *denoising(psnr, list(named)),
    ]
    directory = Path(arguments.output).expanduser()
    write(directory, arguments.title, [each for each in sections if each.rows or each.figures])
    for file in ("report.html", "report.md"):
        print(f"Saved {os.path.relpath(directory / file)}")
    return directory


def config_value(run: Run, key: str) -> Any:
    """The choice of a config group (or its class), or the value of a config key."""
    value = run.value(key)
    if isinstance(value, dict) and "_target_" in value:
        return str(value["_target_"]).rpartition(".")[2]
    return value


def differing_keys(runs: Sequence[Run]) -> list[str]:
    """Overridden keys and config groups whose values are not the same in all runs."""
    keys = [override.lstrip("+~").partition("=")[0] for run in runs for override in run.overrides]
    keys += [group for run in runs for group in run.choices]
    used = [key for key in dict.fromkeys(keys) if not key.startswith(_IGNORED)]
    return [key for key in used if len({str(config_value(run, key)) for run in runs}) > 1]


def run_names(runs: Sequence[Run], differences: Sequence[str]) -> list[str]:
    """The first of these that are unique: config names, differences, directories, paths."""
    changes = [[f"{key}={_text(config_value(run, key))}" for key in differences] for run in runs]
    candidates = (
        [run.config.name for run in runs],
        [", ".join(words) for words in changes],
        [f"{run.config.name} ({run.path.name})" for run in runs],
        [str(run.path) for run in runs],
    )
    return next(names for names in candidates if len(set(names)) == len(runs))


def training_results(run: Run) -> Row:
    """The numbers in metrics.json by title; without those that are missing."""
    if run.metrics is None:
        return {}
    metrics = run.metrics.model_dump() | run.metrics.scores
    keys = ("test/mse", "test/psnr", "seconds", "images_seen", "parameters")
    values = zip(RESULTS, (metrics.get(key) for key in keys), strict=True)
    return {title: value for title, value in values if value is not None}


def read_evaluations(runs: Mapping[str, Run]) -> tuple[list[Row], list[Row]]:
    """The evaluations of all runs: a row per set of generated images, and a row per PSNR.

    Keeps the latest of a run with equal settings, in chronological order. Scores can be compared
    under equal `conditions`.
    """
    generations: dict[Any, Row] = {}
    psnr: dict[Any, Row] = {}
    for name, run in runs.items():
        keys = ("schedule", "data", "data.image_size")
        schedule, data, size = (_text(config_value(run, key)) for key in keys)
        for file in sorted((run.path / "evaluations").glob("*/evaluation.json")):
            record = read_record(Evaluation, file)
            if record is None:  # damaged
                continue
            if (scores := record.generation) and scores.metrics:
                row = scores.model_dump()
                row |= row["settings"] | row["metrics"]
                ratio = scores.memorization.ratio
                row |= {"run": name, "file": file, "memorization_ratio": ratio}
                row["conditions"] = tuple(str(row[key]) for key in CONDITIONS)
                key = name, row["conditions"], *(str(row[setting]) for setting in SETTINGS)
                generations.pop(key, None)
                generations[key] = row
            for level in record.noise_levels:
                count, seed = record.num_test_images, record.noise_seed
                common = {"conditions": (schedule, data, size, count, seed), "t": level.t}
                for method, values in level.scores.items():
                    row = common | {"method": name if method == "network" else method}
                    psnr[tuple(row.values())] = row | {"psnr": values.psnr}
    return list(generations.values()), list(psnr.values())


def generation_tables(generations: Sequence[Row], columns: Sequence[str]) -> list[Section]:
    """One table for each number of images, feature extractor and reference."""
    formats = {"run": ""} | {column: COLUMNS[column] for column in columns}
    header = [c.replace("frechet", "Frechet").replace("nfe", "NFE") for c in formats]
    sections = []
    for (num_samples, extractor, reference, _), group in _group(generations, "conditions").items():
        rows: list[Row] = []
        for name, own in _group(group, "run").items():
            rows += [row | {"run": _label(name, row, own, columns)} for row in own]
        real = {"run": "real training images", "is_baseline": True, **group[0]["real_baseline"]}
        real["class_accuracy"] = group[0]["real_class_accuracy"]
        if std := group[0]["real_baseline_std"]:
            real |= {k: f"{real[k]:{form}} ± {std[k]:{form}}" for k, form in METRIC_FORMATS.items()}
        cells = table([*rows, real], formats, METRIC_FORMATS)
        text = f"Against the {reference}; feature extractor {extractor}."
        titles = [title.replace("_", " ") for title in header]
        sections.append(Section(f"Generated images: {num_samples}", text, titles, cells))
    return sections


def generated_images(generations: Sequence[Row]) -> Section:
    """The images of the last evaluation of each run."""
    images = []
    for name, row in {row["run"]: row for row in generations}.items():
        file = row["file"].with_name("generated.png")
        with suppress(UserError):  # missing or damaged
            real = row["real_baseline"]["frechet_distance"]
            caption = f"{name}\ndistance {row['frechet_distance']:.2f} (real {real:.2f})"
            images.append((f"{caption}, {row['nfe']} NFE", read_image(file)))
    figures = {"generated": plot_images(images, columns=4, width=2.7)} if images else {}
    return Section("Images", figures=figures)


def distance_over_nfe(generations: Sequence[Row]) -> Section:
    """Frechet distance over NFE, for runs with three or more different NFE."""
    section = Section("Frechet distance over network evaluations (NFE)")
    comparable = _group(generations, "conditions")
    groups = [group for rows in comparable.values() for group in _group(rows, "run").items()]
    for name, group in groups:
        nfes = sorted({row["nfe"] for row in group})
        if len(nfes) < 3:
            continue
        curves: dict[str, list[tuple[float, float]]] = {}
        for row in group:
            sampler = re.sub(r"steps=\d+(, )?", "", row["sampler"])
            title = _label(sampler, row, group, ["sampler"])
            curves.setdefault(title, []).append((row["nfe"], row["frechet_distance"]))
        real = group[0]["real_baseline"]["frechet_distance"]
        baseline = {"real images": [(nfe, real) for nfe in nfes]}
        figure = plot(curves | baseline, "NFE per image", "Frechet distance", curves, log=True)
        num_samples, extractor, *_ = group[0]["conditions"]
        section.figures[f"{name}: {num_samples} images, {extractor}"] = figure
    return section


def denoising(psnr: Sequence[Row], runs: Sequence[str]) -> list[Section]:
    """PSNR by noise level, for each schedule, dataset, image size, number of images and seed."""
    sections = []
    for (schedule, data, size, count, seed), group in _group(psnr, "conditions").items():
        levels = sorted({row["t"] for row in group})
        rows: list[Row] = []
        for method, own in _group(group, "method").items():
            values = {row["t"]: row["psnr"] for row in own}
            rows.append({"run": method, "is_baseline": method not in runs} | values)
        rows.sort(key=lambda row: row["is_baseline"])
        cells = table(rows, {"run": ""} | dict.fromkeys(levels, ".2f"), levels)
        curves = {row["run"]: [(t, row[t]) for t in levels if t in row] for row in rows}
        title = f"Denoising: {schedule} schedule, {data} at {size}"
        figures = {f"{title}, {count}, {seed}": plot(curves, "t", "PSNR, dB", runs)}
        text = f"PSNR in dB over noise level t; {count} test images, noise seed {seed}."
        header = ["run", *(f"{t:g}" for t in levels)]
        sections.append(Section(title, text, header, cells, figures))
    return sections


def write(directory: Path, title: str, sections: Sequence[Section]) -> None:
    """Renders the sections; the Markdown refers to images in report_files."""
    folder = directory / "report_files"
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    figures = {name: figure for section in sections for name, figure in section.figures.items()}
    files: dict[str, str] = {}
    images: dict[str, str] = {}
    for i, (name, figure) in enumerate(figures.items()):
        slug = re.sub(r"[^A-Za-z0-9.]+", "-", name).strip("-")[:80]
        files[name] = f"{slug}.png" if f"{slug}.png" not in files.values() else f"{slug}-{i}.png"
        figure.savefig(folder / files[name], dpi=120)
        images[name] = base64.b64encode((folder / files[name]).read_bytes()).decode()
    for file in ("report.html", "report.md"):
        template = TEMPLATES.get_template(f"{file}.j2")
        text = template.render(title=title, sections=sections, images=images, files=files)
        write_atomically(directory / file, text)


def table(
    rows: Sequence[Row], formats: Mapping[Any, str], compared: Iterable[Any] = ()
) -> list[list[tuple[str, bool]]]:
    """Cells (text, is best) of rows by column; those with `is_baseline` are not compared.

    The best is the lowest distance, or the highest of other values.
    """
    best = {}
    networks = [row for row in rows if not row.get("is_baseline")]
    for column in compared:
        values = [row[column] for row in networks if column in row]
        if len(values) > 1:
            best[column] = min(values) if str(column).endswith("distance") else max(values)

    def cell(row: Row, column: Any, form: str) -> tuple[str, bool]:
        value = row.get(column)
        return _text(value, form), column in best and value == best[column] and row in networks

    return [[cell(row, column, form) for column, form in formats.items()] for row in rows]


def _group(rows: Iterable[Row], key: str) -> dict[Any, list[Row]]:
    groups: dict[Any, list[Row]] = defaultdict(list)
    for row in rows:
        groups[row[key]].append(row)
    return groups


def _label(name: str, row: Row, group: Sequence[Row], hidden: Sequence[str]) -> str:
    """A name and the settings that differ in the group: `04_flow, seed 1`."""
    shown = [key for key in SETTINGS if key not in hidden]
    differing = [key for key in shown if len({str(each[key]) for each in group}) > 1]
    return ", ".join([name, *(f"{key} {_text(row[key])}" for key in differing)])


def _text(value: Any, form: str = "") -> str:
    """A value in a table; `form` is the format of numbers."""
    if isinstance(value, float) or (form and isinstance(value, int)):
        return f"{value:{form or 'g'}}"
    return "" if value is None else str(value)
