import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from helpers import Script
from PIL import Image

from unet_diffusion.runs.files import write_json

METRICS = {"frechet_distance": 1.5, "precision": 0.8, "recall": 0.7}
SETTINGS = {"run": "x", "checkpoint": "best.ckpt", "weights": "raw", "label": "none"}
SETTINGS |= {"sampler": "DDIMSampler(steps=2, clip=none)", "nfe": 2}
SETTINGS |= {"guidance_scale": 1.0, "seed": 0}


def record(
    psnr: dict[float, dict[str, float]] | None = None,
    frechet_distance: float = 1.5,
    num_samples: int = 2000,
    **settings: Any,
) -> dict[str, Any]:
    """An evaluation record; `psnr` by noise level and method."""
    levels = [
        {"t": t, "scores": {method: {"psnr": value} for method, value in methods.items()}}
        for t, methods in (psnr or {}).items()
    ]
    generation = {
        "metrics": METRICS | {"frechet_distance": frechet_distance},
        "memorization": {"ratio": 1.0},
        "real_baseline": {name: value / 10 for name, value in METRICS.items()},
        "real_baseline_std": {name: value / 100 for name, value in METRICS.items()},
        "class_accuracy": None,
        "real_class_accuracy": None,
        "num_samples": num_samples,
        "reference": "test split of clothes, 1000 images at 16x16",
        "reference_hash": "01234567",
        "feature_extractor": "extractor-0123",
        "settings": SETTINGS | settings,
    }
    common = {"checkpoint": "best.ckpt", "weights": "raw", "num_test_images": 1000}
    return common | {"noise_seed": 0, "noise_levels": levels, "generation": generation}


def write_record(run: Path, name: str, content: dict[str, Any]) -> None:
    write_json(run / "evaluations" / name / "evaluation.json", content)


class Page:
    """The tables of a page as rows of texts, the bold cells, and the sources of images."""

    def __init__(self, path: Path) -> None:
        text = path.read_text()
        tables = re.findall(r'<div class="scroll">\n<table>(.*?)</table>', text, re.DOTALL)
        assert text.count("<table>") == text.count("</table>") == len(tables)
        rows = [re.findall(r"<tr>(.*?)</tr>", table) for table in tables]
        cell = r"<t[dh]>(?:<b>)?(.*?)(?:</b>)?</t[dh]>"
        self.tables = [[re.findall(cell, row) for row in table] for table in rows]
        self.bold = re.findall("<b>(.*?)</b>", text)
        self.sources = re.findall(r'(?:src|href)="(.*?)"', text)


Report = Callable[..., Page]


@pytest.fixture
def runs(short_run: Path, tmp_path: Path) -> Path:
    """Three runs with different noise levels and evaluations, one also with another num_samples."""
    for i, percent in enumerate((0.3, 0.5, 0.7)):
        run = Path(shutil.copytree(short_run, tmp_path / "runs" / str(i)))
        config = (run / "config.yaml").read_text()
        (run / "config.yaml").write_text(re.sub(r"percent: 0\.5", f"percent: {percent}", config))
        (run / "overrides.yaml").write_text(f"- noise.percent={percent}\n")
        psnr = {
            0.2: {"network": 20 + percent, "noisy": 10.0},
            0.6: {"network": 15 - percent, "noisy": 5.0},
        }
        write_record(run, "1", record(psnr, frechet_distance=3.0 - percent))
    write_record(run, "0", record(num_samples=500, frechet_distance=9.0))
    Image.new("RGB", (20, 30)).save(run / "evaluations" / "1" / "generated.png")
    return tmp_path / "runs"


@pytest.fixture
def report(script: Script, tmp_path: Path) -> Report:
    def run(*arguments: str) -> Page:
        status, out, err = script("report", *arguments)
        assert status == 0, err
        assert "report/report.html" in out
        return Page(tmp_path / "report" / "report.html")

    return run


def titles_of_images(tmp_path: Path) -> list[str]:
    text = (tmp_path / "report" / "report.md").read_text()
    return re.findall(r"!\[(.*?)\]", text)


def test_report_of_a_sweep_shows_the_scores_by_run(runs: Path, report: Report, tmp_path: Path):
    page = report(f"runs={runs}", "title='Levels <of> noise'")
    overview, *generation, denoising = page.tables
    assert (overview[0][:2], overview[0][-1]) == (["run", "test MSE"], "noise.percent")
    assert [row[0] for row in overview[1:]] == [f"noise.percent={p}" for p in (0.3, 0.5, 0.7)]
    assert [row[-1] for row in overview[1:]] == ["0.3", "0.5", "0.7"]
    metrics = json.loads((runs / "0" / "metrics.json").read_text())
    assert overview[1][1] == f"{metrics['scores']['test/mse']:.4f}"
    assert overview[1][4:6] == ["384", f"{metrics['parameters']:,}"]
    assert len(generation) == 2  # distances of 2,000 and of 500 images do not share a table
    (large,) = (table for table in generation if len(table) == 5)
    assert [row[1] for row in large[1:]] == ["2.700", "2.500", "2.300", "0.150 ± 0.015"]
    assert {"2.300"} == {text for text in page.bold if text in ("2.700", "2.500", "2.300")}
    assert denoising[0] == ["run", "0.2", "0.6"]
    assert denoising[1][1:] == ["20.30", "14.70"]
    assert denoising[-1] == ["noisy", "10.00", "5.00"]
    assert {"20.70", "14.70"} <= set(page.bold)
    assert "Levels &lt;of&gt; noise" in (tmp_path / "report" / "report.html").read_text()
    assert len(titles_of_images(tmp_path)) == 2  # generated images, and PSNR over the noise level


def test_columns_can_be_selected(runs: Path, report: Report, script: Script):
    table = report(f"runs={runs}", "columns=[recall,nfe,frechet_distance]").tables[1]
    assert table[0] == ["run", "recall", "NFE", "Frechet distance"]
    assert table[1] == ["noise.percent=0.3", "0.700", "2", "2.700"]
    for columns, message in (("[recall,beauty]", "expected some of frechet_distance,"), ("[]", "")):
        status, _, err = script("report", f"runs={runs}", f"columns={columns}")
        assert status == 2
        assert "columns=" in err
        assert message in err


def test_equal_runs_are_named_by_directory(short_run: Path, report: Report, tmp_path: Path):
    for name in "ab":
        config = Path(shutil.copytree(short_run, tmp_path / "runs" / name)) / "config.yaml"
        config.write_text(re.sub(r"(?m)^name: .*", "name: first", config.read_text()))
    overview = report("runs=runs").tables[0]
    assert [row[0] for row in overview[1:]] == ["first (a)", "first (b)"]


def test_later_evaluation_replaces_only_the_same_scores(runs: Path, report: Report):
    psnr = {0.2: {"network": 20.5, "median": 7.0}, 0.6: {"network": 14.5, "median": 7.0}}
    write_record(runs / "1", "1", record(psnr))
    write_record(runs / "1", "2", record({0.2: {"network": 25.0}}) | {"generation": None})
    write_record(runs / "1", "3", record(guidance_scale=2.0, frechet_distance=1.0))
    _, *generation, denoising = report(f"runs={runs}", "columns=[frechet_distance]").tables
    assert ["noise.percent=0.5", "25.00", "14.50"] in denoising
    assert ["median", "7.00", "7.00"] in denoising
    names = {row[0] for table in generation for row in table}
    changed = {f"noise.percent=0.5, guidance_scale {scale}" for scale in (1, 2)}
    assert changed | {"noise.percent=0.3"} <= names


def test_schedules_have_separate_denoising_tables(runs: Path, report: Report, tmp_path: Path):
    config = runs / "2" / "config.yaml"
    config.write_text(config.read_text().replace("  schedule: linear", "  schedule: ddpm"))
    report(f"runs={runs}")
    text = (tmp_path / "report" / "report.html").read_text()
    assert text.count("<h2>Denoising: ") == 2
    assert "Denoising: ddpm schedule" in text


def test_distance_is_plotted_over_three_different_nfe(runs: Path, report: Report, tmp_path: Path):
    for nfe in (4, 8):
        sampler = f"DDIMSampler(steps={nfe}, clip=none)"
        write_record(runs / "0", f"nfe-{nfe}", record(None, 2 / nfe, sampler=sampler, nfe=nfe))
    report(f"runs={runs}")
    found = [title for title in titles_of_images(tmp_path) if "2000 images" in title]
    assert found == ["noise.percent=0.3: 2000 images, extractor-0123"]


@pytest.mark.parametrize("content", ["{", '{"generation": null, "noise_levels": 3}'])
def test_damaged_records_count_as_missing(runs: Path, report: Report, content: str):
    (runs / "0" / "evaluations" / "1" / "evaluation.json").write_text(content)
    (runs / "0" / "metrics.json").write_text(content)
    overview, *tables = report(f"runs={runs}").tables
    assert overview[1][1:6] == [""] * 5
    assert all(row[0] != "noise.percent=0.3" for table in tables for row in table)
    assert any(row[0] == "noise.percent=0.5" for table in tables for row in table)


def test_markdown_has_the_same_tables_and_images(runs: Path, report: Report, tmp_path: Path):
    page = report(f"runs={runs}")
    assert all(source.startswith("data:") for source in page.sources)  # nothing else is loaded
    text = (tmp_path / "report" / "report.md").read_text()
    tables = re.findall(r"(?:^\|.*\|\n)+", text, flags=re.MULTILINE)
    assert len(tables) == len(page.tables)
    for table, rows in zip(tables, page.tables, strict=True):
        lines = [line for line in table.splitlines() if "---" not in line]
        cells = [[cell.strip().strip("*") for cell in line.strip("|").split("|")] for line in lines]
        assert [[cell.replace("\\", "") for cell in row] for row in cells] == rows
    images = re.findall(r"!\[.*?\]\((.*?)\)", text)
    assert len(images) == sum(source.startswith("data:image/png") for source in page.sources)
    assert all(Image.open(tmp_path / "report" / image).size[0] > 100 for image in images)


def test_missing_runs_are_reported(script: Script, tmp_path: Path):
    cases = (([], "runs: required"), (["runs=nowhere"], "runs=nowhere: no run directories found"))
    for arguments, message in cases:
        status, _, err = script("report", *arguments)
        assert status == 2
        assert message in err
    assert list(tmp_path.iterdir()) == []
