"""scripts/report.py: runs side by side, as one HTML page and as Markdown."""

import base64
import io
import math
import os
import re
import shutil
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any

from matplotlib import rc_context
from matplotlib.figure import Figure
from omegaconf import OmegaConf
from pydantic import Field, TypeAdapter, ValidationError, validate_call

from unet_diffusion.config import STRICT
from unet_diffusion.data.image_folder import read_image
from unet_diffusion.evaluation.evaluate import EvaluationRecord
from unet_diffusion.evaluation.figures import TEMPLATES, plot, plot_images
from unet_diffusion.evaluation.generation_metrics import METRIC_FORMATS
from unet_diffusion.runs import Run, find_runs, read_json, write_atomically

Row = Mapping[str, Any]
SCALE = ("num_samples", "feature_extractor", "reference", "reference_hash")
"""Distances can be compared where these are equal."""
SETTINGS = ("sampler", "label", "guidance_scale", "seed", "weights", "checkpoint")
"""What two sets of images of one run can differ in."""
PSNR_SCALE = ("schedule", "data", "image_size", "num_test_images", "noise_seed")
COLUMNS = [*METRIC_FORMATS, "class_accuracy", "nfe", "guidance_scale", "seed", "weights", "sampler"]
OVERVIEW_COLUMNS = {
    "test/mse": ("test MSE", ".4f"),
    "test/psnr": ("test PSNR, dB", ".2f"),
    "seconds": ("time, s", ".0f"),
    "images_seen": ("images seen", ",.0f"),
    "parameters": ("parameters", ",.0f"),
}
_IGNORED = ("callbacks", "logger", "output_dir", "run_dir", "cache_dir", "sweep", "name", "hydra")
_MAX_DIFFERENCES = 12
_RECORD = TypeAdapter(EvaluationRecord)


@dataclass
class Section:
    """A part of the report: a table of (text, is best) cells, and figures by title."""

    title: str
    text: str = ""
    header: Sequence[str] = ()
    rows: Sequence[Sequence[tuple[str, bool]]] = ()
    figures: dict[str, Figure] = field(default_factory=dict)


@validate_call(config=STRICT)
@rc_context({"text.parse_math": False})  # a $ in a name is no formula
def report(
    runs: str | list[str],
    output: str = "report",
    columns: Annotated[list[str], Field(min_length=1)] | None = None,
    title: str = "Runs",
) -> Path:
    """Writes report.html and report.md; see conf/report.yaml for the arguments.

    Damaged records count as missing.

    Returns:
        The output directory.

    Raises:
        ValueError: there are no runs or no such column.
    """
    for column in columns or []:
        if column not in COLUMNS:
            raise ValueError(f"columns={column}: expected some of {', '.join(COLUMNS)}.")
    found = find_runs([runs] if isinstance(runs, str) else runs)
    differences = differing_keys(found)
    named = dict(zip(run_names(found, differences), found, strict=True))
    records = [read_evaluations(name, run) for name, run in named.items()]
    generations = [row for rows, _ in records for row in rows]
    psnr = [row for _, rows in records for row in rows]
    sections = [
        overview(named, differences),
        *generation_tables(generations, columns or COLUMNS),
        generated_images(named, generations),
        distance_over_nfe(generations),
        *denoising(psnr, list(named)),
        scores_over_swept_keys(named, generations, differences),
    ]
    directory = Path(output).expanduser()
    write(directory, title, [each for each in sections if each.rows or each.figures])
    for file in ("report.html", "report.md"):
        print(f"Saved {os.path.relpath(directory / file)}")
    return directory


def config_value(run: Run, key: str) -> Any:
    """The choice of a config group (or its class), or the value of a config key."""
    value = run.config.get("choices", {}).get(key, OmegaConf.select(run.config, key))
    if OmegaConf.is_dict(value) and "_target_" in value:
        return value["_target_"].rpartition(".")[2]
    return OmegaConf.to_container(value) if OmegaConf.is_config(value) else value


def metric(run: Run, key: str) -> float | None:
    """A number of metrics.json: a score such as `test/psnr`, or `seconds`."""
    metrics = run.metrics or {}
    scores = metrics.get("scores")
    value = metrics.get(key, scores.get(key) if isinstance(scores, dict) else None)
    return value if _is_number(value) else None


def differing_keys(runs: Sequence[Run]) -> list[str]:
    """Overridden keys and config groups whose values are not the same in all runs."""
    keys = [override.lstrip("+~").partition("=")[0] for run in runs for override in run.overrides]
    keys += [group for run in runs for group in run.config.get("choices", {})]
    used = [key for key in dict.fromkeys(keys) if not key.startswith(_IGNORED)]
    differing = [key for key in used if len({str(config_value(run, key)) for run in runs}) > 1]
    return differing[:_MAX_DIFFERENCES]


def run_names(runs: Sequence[Run], differences: Sequence[str]) -> list[str]:
    """The first of these that are unique: config names, differences, directories, paths."""
    changes = [[f"{key}={_text(config_value(run, key))}" for key in differences] for run in runs]
    candidates = (
        [str(run.config.name) for run in runs],
        [", ".join(words) for words in changes],
        [f"{run.config.name} ({run.path.name})" for run in runs],
        [str(run.path) for run in runs],
    )
    return next(names for names in candidates if len(set(names)) == len(runs))


def read_evaluations(name: str, run: Run) -> tuple[list[Row], list[Row]]:
    """The evaluations of a run: a row per set of generated images, and a row per PSNR.

    Of those that were taken in the same way, the last.
    """
    generations: dict[Any, Row] = {}
    psnr: dict[Any, Row] = {}
    scale = [_text(config_value(run, key)) for key in ("schedule", "data", "data.image_size")]
    for file in sorted((run.path / "evaluations").glob("*/evaluation.json")):
        try:
            record = _RECORD.validate_python(read_json(file))
        except ValidationError:
            continue
        if record.generation is not None:
            row = vars(record.generation) | vars(record.generation.metrics)
            row |= {"run": name, "checkpoint": record.checkpoint, "directory": file.parent}
            generations[_values(row, SCALE + SETTINGS)] = row
        for level in record.noise_levels:
            for method, scores in level.scores.items():
                values = (*scale, str(record.num_test_images), str(record.noise_seed))
                row = dict(zip(PSNR_SCALE, values, strict=True))
                row |= {"method": name if method == "network" else method, "t": level.t}
                psnr[tuple(row.values())] = row | {"psnr": scores["psnr"]}
    return list(generations.values()), list(psnr.values())


def overview(runs: Mapping[str, Run], differences: Sequence[str]) -> Section:
    """What differs between the runs, and the results of the training."""
    rows = [
        [name, *(config_value(run, key) for key in differences)]
        + [metric(run, key) for key in OVERVIEW_COLUMNS]
        for name, run in runs.items()
    ]
    titles, formats = zip(*OVERVIEW_COLUMNS.values(), strict=True)
    text = "Test scores are at the noise levels of each run's training."
    cells = _cells(rows, ["", *("" for _ in differences), *formats])
    return Section("Runs", text, ["run", *differences, *titles], cells)


def generation_tables(generations: Sequence[Row], columns: Sequence[str]) -> list[Section]:
    """One table for each number of images, feature extractor and reference."""
    formats = ["", *(METRIC_FORMATS.get(c, ".3f" if "accuracy" in c else "") for c in columns)]
    best = {
        i: min if column.endswith("distance") else max
        for i, column in enumerate(columns, start=1)
        if column in METRIC_FORMATS
    }
    names = [column.replace("frechet", "Frechet").replace("nfe", "NFE") for column in columns]
    titles = [name.replace("_", " ") for name in names]
    sections = []
    for (num_samples, extractor, reference, _), group in _group(generations, SCALE).items():
        rows = []
        for own in _group(group, ["run"]).values():
            shown = [key for key in _differing(own, SETTINGS) if key not in columns]
            rows += [[_title(row, ["run"], shown), *(row[c] for c in columns)] for row in own]
        real = vars(group[0]["real_baseline"]) | {"class_accuracy": group[0]["real_class_accuracy"]}
        if std := group[0]["real_baseline_std"]:
            for name, form in METRIC_FORMATS.items():
                real[name] = f"{real[name]:{form}} ± {getattr(std, name):{form}}"
        baseline = ["real training images", *(real.get(column) for column in columns)]
        cells = _cells(rows, formats, best) + _cells([baseline], formats)
        text = f"Against the {reference}; feature extractor {extractor}."
        sections.append(Section(f"Generated images: {num_samples}", text, ["run", *titles], cells))
    return sections


def generated_images(runs: Mapping[str, Run], generations: Sequence[Row]) -> Section:
    """The images of the last evaluation of each run; without one, the last preview."""
    images = []
    by_time = sorted(generations, key=lambda row: row["directory"].name)
    for name, run in runs.items():
        previews = sorted((run.path / "previews").glob("generated-*.png"))
        files = dict.fromkeys(previews, name)
        for row in (row for row in by_time if row["run"] == name):
            real = row["real_baseline"].frechet_distance
            caption = f"{name}\ndistance {row['frechet_distance']:.2f} (real {real:.2f})"
            files[row["directory"] / "generated.png"] = f"{caption}, {row['nfe']} NFE"
        for file in [file for file in files if file.is_file()][-1:]:
            try:
                images.append((files[file], read_image(file)))
            except ValueError:  # damaged
                continue
    figures = {"generated": plot_images(images, columns=6, width=2.7)} if images else {}
    return Section("Images", figures=figures)


def distance_over_nfe(generations: Sequence[Row]) -> Section:
    """Frechet distance over NFE, for runs with three or more different NFE."""
    section = Section("Frechet distance over network evaluations (NFE)")
    generated = [row for row in generations if row["nfe"]]
    for (name, num_samples, extractor, *_), group in _group(generated, ("run", *SCALE)).items():
        nfes = sorted({row["nfe"] for row in group})
        if len(nfes) < 3:
            continue
        shown = [key for key in _differing(group, SETTINGS) if key != "sampler"]
        curves: dict[str, list[tuple[float, float]]] = {}
        for row in group:
            row = {**row, "sampler": re.sub(r"steps=\d+(, )?", "", row["sampler"])}
            points = curves.setdefault(_title(row, ["sampler"], shown), [])
            points.append((row["nfe"], row["frechet_distance"]))
        real = group[0]["real_baseline"].frechet_distance
        baseline = {"real images": [(nfe, real) for nfe in nfes]}
        figure = plot(curves | baseline, "NFE per image", "Frechet distance", curves, log=True)
        section.figures[f"{name}: {num_samples} images, {extractor}"] = figure
    return section


def denoising(psnr: Sequence[Row], runs: Sequence[str]) -> list[Section]:
    """PSNR by noise level, for each schedule, dataset, image size, number of images and seed."""
    sections = []
    for (schedule, data, size, num_images, seed), group in _group(psnr, PSNR_SCALE).items():
        levels = sorted({row["t"] for row in group})
        curves = {
            method: {row["t"]: row["psnr"] for row in rows}
            for (method,), rows in _group(group, ["method"]).items()
        }
        networks, others = (
            [[m, *(curves[m].get(t) for t in levels)] for m in curves if (m in runs) == is_run]
            for is_run in (True, False)
        )
        formats = ["", *(".2f" for _ in levels)]
        cells = _cells(networks, formats, dict.fromkeys(range(1, len(formats)), max))
        title = f"Denoising: {schedule} schedule, {data} at {size}"
        text = f"PSNR in dB over noise level t; {num_images} test images, noise seed {seed}."
        points = {method: values.items() for method, values in curves.items()}
        figures = {f"{title}, {num_images}, {seed}": plot(points, "t", "PSNR, dB", runs)}
        header = ["run", *(f"{t:g}" for t in levels)]
        sections.append(Section(title, text, header, cells + _cells(others, formats), figures))
    return sections


def scores_over_swept_keys(
    runs: Mapping[str, Run], generations: Sequence[Row], differences: Sequence[str]
) -> Section:
    """Test PSNR and Frechet distance over each key with three or more numbers."""
    section = Section("Scores over the swept keys")
    by_time = sorted(generations, key=lambda row: row["directory"].name)
    latest = {row["run"]: row for row in by_time}
    compared = _differing(list(latest.values()), (*SCALE, *SETTINGS))
    psnr = {name: metric(run, "test/psnr") for name, run in runs.items()}
    distances = {name: row["frechet_distance"] for name, row in latest.items()}
    for key in differences:
        values = {name: config_value(run, key) for name, run in runs.items()}
        if not all(map(_is_number, values.values())) or len(set(values.values())) < 3:
            continue
        comparable = not set(compared) - {key, "sampler"}
        scores = {"test PSNR, dB": psnr, "Frechet distance": distances if comparable else {}}
        for title, by_run in scores.items():
            pairs = [(values[name], y) for name, y in by_run.items() if y is not None]
            found = [(x, y) for x, y in pairs if math.isfinite(y)]
            if len(found) > 1:
                section.figures[f"{title} over {key}"] = plot({title: found}, key, title, [title])
    return section


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
        stream = io.BytesIO()
        figure.savefig(stream, format="png", dpi=120)
        images[name] = base64.b64encode(stream.getvalue()).decode()
        (folder / files[name]).write_bytes(stream.getvalue())
    TEMPLATES.filters["escape_markdown"] = escape_markdown
    for file in ("report.html", "report.md"):
        template = TEMPLATES.get_template(f"{file}.j2")
        text = template.render(title=title, sections=sections, images=images, files=files)
        write_atomically(directory / file, text)


def escape_markdown(text: str) -> str:
    """Escapes what Markdown would interpret; an underscore inside a word is literal."""
    return re.sub(r"([\\|`*<>\[\]]|(?<!\w)_|_(?!\w))", r"\\\1", text)


def _cells(
    rows: Sequence[Sequence[Any]],
    formats: Sequence[str],
    best: Mapping[int, Callable[[Iterable[Any]], Any]] | None = None,
) -> list[list[tuple[str, bool]]]:
    """Text of each value, and whether it is the `best` (min or max) of its column."""
    best_texts = {}
    for i, choose in (best or {}).items():
        values = [row[i] for row in rows if row[i] is not None]
        best_texts[i] = _text(choose(values), formats[i]) if len(values) > 1 else None
    texts = [[_text(v, form) for v, form in zip(row, formats, strict=True)] for row in rows]
    return [[(text, best_texts.get(i) == text) for i, text in enumerate(row)] for row in texts]


def _values(row: Row, keys: Sequence[str]) -> tuple[str, ...]:
    return tuple(_text(row[key]) for key in keys)


def _group(rows: Sequence[Row], keys: Sequence[str]) -> dict[tuple[str, ...], list[Row]]:
    groups: dict[tuple[str, ...], list[Row]] = {}
    for row in rows:
        groups.setdefault(_values(row, keys), []).append(row)
    return groups


def _differing(rows: Sequence[Row], keys: Sequence[str]) -> list[str]:
    return [key for key in keys if len(_group(rows, [key])) > 1]


def _title(row: Row, values: Sequence[str], keys: Sequence[str]) -> str:
    """Some values, and others with their keys: `04_flow, seed 1`."""
    return ", ".join([*_values(row, values), *(f"{key} {_text(row[key])}" for key in keys)])


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _text(value: Any, form: str = "") -> str:
    """A value in a table; `form` is the format of numbers."""
    if isinstance(value, float) or (form and _is_number(value)):
        return f"{value:{form or 'g'}}"
    return "" if value is None else str(value)
