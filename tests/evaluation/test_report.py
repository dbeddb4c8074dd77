import copy
import json
import re
import shutil
import subprocess
from collections.abc import Callable
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from unet_diffusion.evaluation.markup import Page, Table
from unet_diffusion.runs import write_json

Script = Callable[..., tuple[int, str, str]]

CLOSENESS = {"frechet_distance": 1.5, "kernel_distance": 0.01, "precision": 0.8, "recall": 0.7, "coverage": 0.6}
GENERATION = {
    "closeness": CLOSENESS,
    "floor": {name: value / 10 for name, value in CLOSENESS.items()},
    "floor_spread": {name: value / 100 for name, value in CLOSENESS.items()},
    "class_accuracy": None,
    "images": 2000,
    "reference": "test split of clothes, 1000 images at 16x16",
    "feature_network": "eyes-0123",
    "sampler": "DDIM(steps=2)",
    "nfe": 2,
    "guidance": 0.0,
    "seed": 0,
    "weights": "raw",
    "label": "none",
}


def evaluation(**changes: Any) -> dict[str, Any]:
    record = copy.deepcopy(GENERATION) | {key: value for key, value in changes.items() if key not in CLOSENESS}
    record["closeness"] |= {key: value for key, value in changes.items() if key in CLOSENESS}
    return {"generation": record}


class Checked(HTMLParser):
    """Notes tables as rows of texts, and that tags are closed in order."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tables: list[list[list[str]]] = []
        self.sources: list[str] = []
        self.bold: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.sources += [value or "" for name, value in attrs if name in ("src", "href", "xlink:href")]
        if tag in ("meta", "link", "img", "br"):
            return
        self.open.append(tag)
        if tag == "table":
            self.tables.append([])
        elif tag == "tr":
            self.tables[-1].append([])
        elif tag in ("td", "th"):
            self.tables[-1][-1].append("")

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if self.open and {"td", "th"} & set(self.open):
            self.tables[-1][-1][-1] += data
            if "b" in self.open:
                self.bold.append(data)


@pytest.fixture
def runs(short_run: Path, tmp_path: Path) -> Path:
    """Three runs that differ in the level they were trained at, with evaluations; one of them at another count."""
    for number, percent in enumerate((0.3, 0.5, 0.7)):
        run = Path(shutil.copytree(short_run, tmp_path / "runs" / f"{number}"))
        config = (run / "config.yaml").read_text()
        (run / "config.yaml").write_text(re.sub(r"percent: 0\.5", f"percent: {percent}", config))
        (run / "overrides.yaml").write_text(f"- noise.percent={percent}\n")
        record = evaluation(frechet_distance=3.0 - percent)
        record["levels"] = [
            {"percent": 0.2, "network": {"psnr": 20 + percent}, "noisy": {"psnr": 10.0}},
            {"percent": 0.6, "network": {"psnr": 15 - percent}, "noisy": {"psnr": 5.0}},
        ]
        write_json(run / "evaluations" / "1" / "evaluation.json", record)
    write_json(tmp_path / "runs" / "2" / "evaluations" / "0" / "evaluation.json", evaluation(images=500, frechet_distance=9.0))
    return tmp_path / "runs"


def read(path: Path) -> Checked:
    checked = Checked()
    checked.feed(path.read_text())
    assert checked.open == []
    return checked


def test_a_sweep_on_one_page(runs: Path, script: Script, tmp_path: Path):
    status, out, err = script("report", f"runs={runs}", "title='Levels <of> noise'")
    assert status == 0, err
    assert "report/report.html" in out
    page = read(tmp_path / "report" / "report.html")
    overview, *drawing, denoising = page.tables
    assert overview[0][:2] == ["run", "noise.percent"]
    assert [row[0] for row in overview[1:]] == ["noise.percent=0.3", "noise.percent=0.5", "noise.percent=0.7"]
    assert [row[1] for row in overview[1:]] == ["0.3", "0.5", "0.7"]
    metrics = json.loads((runs / "0" / "metrics.json").read_text())
    assert overview[1][2] == f"{metrics['scores']['test/mse']:.4f}"
    assert overview[1][5:] == ["384", f"{metrics['parameters']:,}"]
    assert len(drawing) == 2  # distances at 2,000 and at 500 images do not share a column
    (large,) = (table for table in drawing if len(table) == 5)
    assert [row[1] for row in large[1:]] == ["2.700", "2.500", "2.300", "0.150 ± 0.015"]
    assert "2.300" in page.bold
    assert "2.700" not in page.bold
    assert denoising[0] == ["run", "0.2", "0.6"]
    assert denoising[1][1:] == ["20.30", "14.70"]
    assert denoising[-1] == ["noisy", "10.00", "5.00"]
    assert {"20.70", "14.70"} <= set(page.bold)
    text = (tmp_path / "report" / "report.html").read_text()
    assert "Levels &lt;of&gt; noise" in text
    assert "test PSNR, dB over noise.percent" in text
    assert "Fréchet distance over noise.percent" in text  # of the last evaluation of each, all at the same count
    assert "PSNR over the noise level" in text
    assert text.count("<svg") == 3


def test_columns_can_be_chosen(runs: Path, script: Script, tmp_path: Path):
    status, _, err = script("report", f"runs={runs}", "columns=[recall,nfe,frechet_distance]")
    assert status == 0, err
    table = read(tmp_path / "report" / "report.html").tables[1]
    assert table[0] == ["run", "recall", "NFE", "Fréchet distance"]
    assert table[1] == ["noise.percent=0.3", "0.700", "2", "2.700"]
    for wrong in ("[recall,beauty]", "recall", "[]"):
        status, _, err = script("report", f"runs={runs}", f"columns={wrong}")
        assert status == 2
        assert "must be a list of some of these: frechet_distance," in err


def test_what_was_scored_is_shown_with_its_score(runs: Path, script: Script, tmp_path: Path):
    Image.new("RGB", (60, 72), (200, 30, 30)).save(runs / "1" / "evaluations" / "1" / "drawn.png")
    (runs / "0" / "evaluations" / "1" / "drawn.png").write_bytes(b"no picture")
    status, _, err = script("report", f"runs={runs}")
    assert status == 0, err
    text = (tmp_path / "report" / "report.html").read_text()
    assert "<figcaption>noise.percent=0.5<br>distance 2.50 (real 0.15), 2 NFE</figcaption>" in text
    assert "<figcaption>noise.percent=0.7</figcaption>" in text  # it has what it drew in training alone
    sheet = np.asarray(Image.open(tmp_path / "report" / "report_files" / "drawn.png").convert("RGB"))
    assert (sheet == (200, 30, 30)).all(axis=-1).mean() > 0.1


def test_runs_that_nothing_else_tells_apart_go_by_their_folders(short_run: Path, script: Script, tmp_path: Path):
    for name in "ab":
        shutil.copytree(short_run, tmp_path / "runs" / name)
    script("report", "runs=runs")
    overview = read(tmp_path / "report" / "report.html").tables[0]
    assert [row[0] for row in overview[1:]] == ["lesson (a)", "lesson (b)"]


def test_a_later_evaluation_hides_nothing_of_an_earlier_one(runs: Path, script: Script, tmp_path: Path):
    """Drawings evaluated again leave the denoising scores; classical denoisers stay beside newer scores of the network."""
    first = json.loads((runs / "1" / "evaluations" / "1" / "evaluation.json").read_text())
    for score in first["levels"]:
        score["wavelet"] = {"psnr": 7.0}
    write_json(runs / "1" / "evaluations" / "1" / "evaluation.json", first)
    write_json(runs / "1" / "evaluations" / "2" / "evaluation.json", {"levels": [{"percent": 0.2, "network": {"psnr": 25.0}}]})
    write_json(runs / "1" / "evaluations" / "3" / "evaluation.json", evaluation(guidance=2.0, frechet_distance=1.0))
    script("report", f"runs={runs}", "columns=[frechet_distance]")
    _, *drawing, denoising = read(tmp_path / "report" / "report.html").tables
    assert ["noise.percent=0.5", "25.00", "14.50"] in denoising
    assert ["wavelet", "7.00", "7.00"] in denoising
    names = [row[0] for table in drawing for row in table]
    assert {"noise.percent=0.5, guidance 0", "noise.percent=0.5, guidance 2", "noise.percent=0.3"} <= set(names)


def test_other_schedules_and_noises_have_a_table_of_their_own(runs: Path, script: Script, tmp_path: Path):
    config = runs / "2" / "config.yaml"
    config.write_text(config.read_text().replace("choices: {}", "choices: {schedule: ddpm}"))
    script("report", f"runs={runs}")
    text = (tmp_path / "report" / "report.html").read_text()
    assert text.count("<h2>Denoising: ") == 2
    assert "Denoising: ddpm schedule" in text


def test_distances_at_different_counts_are_not_plotted_together(runs: Path, script: Script, tmp_path: Path):
    write_json(runs / "2" / "evaluations" / "2" / "evaluation.json", evaluation(images=600))
    script("report", f"runs={runs}")
    assert "Fréchet distance over noise.percent" not in (tmp_path / "report" / "report.html").read_text()


def test_the_page_needs_nothing_else(runs: Path, script: Script, tmp_path: Path):
    script("report", f"runs={runs}")
    page = read(tmp_path / "report" / "report.html")
    assert all(source.startswith(("data:", "#")) for source in page.sources)
    assert "<script" not in (tmp_path / "report" / "report.html").read_text()
    assert sum(source.startswith("data:image/png") for source in page.sources) == 3  # the grids


def test_the_markdown_says_the_same(runs: Path, script: Script, tmp_path: Path):
    script("report", f"runs={runs}")
    text = (tmp_path / "report" / "report.md").read_text()
    tables = re.findall(r"(?:^\|.*\|\n)+", text, flags=re.MULTILINE)
    page = read(tmp_path / "report" / "report.html")
    assert len(tables) == len(page.tables)
    for table, rows in zip(tables, page.tables, strict=True):
        lines = [line for line in table.splitlines() if "---" not in line]
        found = [[cell.strip().strip("*").replace("\\", "") for cell in line.strip("|").split("|")] for line in lines]
        assert found == rows
    for picture in re.findall(r"!\[.*?\]\((.*?)\)", text):
        assert Image.open(tmp_path / "report" / picture).size[0] > 100


def test_runs_without_scores_can_be_shown(short_run: Path, script: Script, tmp_path: Path):
    shutil.copytree(short_run, tmp_path / "runs" / "a")
    (tmp_path / "runs" / "a" / "metrics.json").unlink()
    status, _, err = script("report", "runs=[runs/a]")
    assert status == 0, err
    (overview,) = read(tmp_path / "report" / "report.html").tables
    assert overview[1][1:] == [""] * 5


def test_where_there_are_no_runs(script: Script, tmp_path: Path):
    for typed, said in (([], "runs= is needed"), (["runs=nowhere"], "runs=nowhere holds no runs")):
        status, _, err = script("report", *typed)
        assert status == 2
        assert said in err
    assert list(tmp_path.iterdir()) == []


def test_a_report_into_a_folder_of_pictures_leaves_them(runs: Path, script: Script):
    run = runs / "1"
    before = sorted((run / "pictures").iterdir())
    status, _, err = script("report", f"runs={runs}", f"output={run}")
    assert status == 0, err
    assert sorted((run / "pictures").iterdir()) == before


def test_a_table_finds_the_best_and_keeps_its_shape():
    table = Table(["run", "small", "large"], best={1: min, 2: max})
    table.row("a", "1.0", "5")
    table.row("b", "2.0", "7")
    table.row("real", "0.1 ± 0.01", "9", ranked=False)
    table.row("none", "", "")
    bold = [[text for text, best in row if best] for row in table.cells()]
    assert bold == [["1.0"], ["7"], [], []]
    with pytest.raises(ValueError, match="2 cells under 3 titles"):
        table.row("c", "1")


def test_markdown_takes_any_name(tmp_path: Path):
    page = Page("A | B")
    page.section("01_lesson _x_ y*z", "")
    page.write(tmp_path)
    assert (tmp_path / "report.md").read_text() == "# A \\| B\n\n## 01_lesson \\_x\\_ y\\*z\n"


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("chromium") is None, reason="needs chromium")
@pytest.mark.parametrize("size", ["1300,1600", "500,900"])
def test_a_browser_shows_the_page_without_complaint(runs: Path, script: Script, tmp_path: Path, size: str):
    script("report", f"runs={runs}")
    command = ["chromium", "--headless", "--no-sandbox", "--disable-gpu", "--no-first-run", "--disable-background-networking"]
    command += ["--enable-logging=stderr", f"--user-data-dir={tmp_path / 'profile'}", f"--window-size={size}"]
    command += [f"--screenshot={tmp_path / 'page.png'}", (tmp_path / "report" / "report.html").as_uri()]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert "CONSOLE" not in done.stderr
    assert np.asarray(Image.open(tmp_path / "page.png").convert("L")).std() > 10
