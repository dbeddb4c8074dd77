"""README and docs: commands compose, code runs, tables equal the reports, links exist."""

import importlib
import re
import shlex
from pathlib import Path
from typing import Any

import pytest
from helpers import ROOT, choices, composed, run_script
from hydra.core.override_parser.overrides_parser import OverridesParser

from unet_diffusion.application import OPEN_GROUPS
from unet_diffusion.commands.train import train
from unet_diffusion.experiment.build import check_config
from unet_diffusion.experiment.compose import compose, hydra_override, read_arguments
from unet_diffusion.generation.pipeline import Pipeline
from unet_diffusion.runs import Run

README = (ROOT / "README.md").read_text()
DOCS = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", ROOT / "docs" / "records.md"]
DOCS += [file for file in sorted((ROOT / "docs").glob("*/*.md")) if "_build" not in file.parts]
BLOCKS = [
    (file, language, block)
    for file in DOCS
    for language, block in re.findall(r"^```(\w+)\n(.*?)^```", file.read_text(), re.M | re.S)
]
COMMANDS = {
    line: file.name
    for file, language, block in BLOCKS
    if language == "bash"
    for line in block.splitlines()
    if re.match(r"[^#]*scripts/\w+\.py", line) and not line.startswith("hyperfine")
}
ONLY_TORCH = """
import sys
for name in ("lightning", "hydra", "omegaconf", "torchvision", "torchmetrics"):
    sys.modules[name] = None  # importing it fails
"""


def compose_command(line: str, run: Path) -> tuple[str, Any]:
    """The script and the arguments of a command; of a sweep, those of the first job."""
    line = re.sub(
        r"run=latest\S*", f"run={run}", line.replace("runs/04_flow/<time>-<id>", str(run))
    )
    words = shlex.split(line, comments=True)
    (position,) = (i for i, word in enumerate(words) if word.startswith("scripts/"))
    script = Path(words[position]).stem
    overrides = [word for word in words[position + 1 :] if word not in ("-m", "--cfg", "job")]
    values = []
    for override in OverridesParser.create().parse_overrides(overrides):
        text = override.input_line or ""
        if override.is_sweep_override() and "interval" in text:
            continue
        if override.is_sweep_override():
            text = f"{override.key_or_group}={next(override.sweep_string_iterator())}"
        values.append(hydra_override(text.replace("=...", f"={run}"), OPEN_GROUPS.get(script, [])))
    schema = importlib.import_module(f"unet_diffusion.commands.{script}").Arguments
    return script, read_arguments(compose(script, values), schema)


@pytest.mark.parametrize(("line", "file"), COMMANDS.items(), ids=str)
def test_every_command_has_a_valid_config(line: str, file: str, generator_run: Path):
    script, arguments = compose_command(line, generator_run)
    if script in ("train", "benchmark"):
        check_config(arguments)
    elif script == "sample":
        arguments.load(arguments.open_run())


@pytest.mark.parametrize("file", [*DOCS, *(ROOT / "docs" / "reports").rglob("*.md")], ids=str)
def test_links_exist(file: Path):
    for target in re.findall(r"\]\(([^)#]+)", file.read_text()):
        is_generated = target.startswith("../reference/")  # by the build of the documentation
        assert "://" in target or is_generated or (file.parent / target).exists(), target


def test_tables_of_scores_are_those_of_the_reports():
    reports = "".join(file.read_text() for file in (ROOT / "docs/reports").rglob("*.md"))
    results = (ROOT / "docs/explanation/results.md").read_text()
    tables = re.findall(r"^\| run \|.*\n(?:\|.*\n)+", results, re.M)
    assert len(tables) == 2
    assert all(table in reports for table in tables)
    rows = re.findall(r"^\| `(0\d_\w+)` \|.*?min \| (.*)\|$", README, re.M)
    assert len(rows) == 8
    for name, scores in rows:
        assert f"| {name} | {scores}|" in reports


def test_readme_is_short_and_lists_the_experiments():
    assert len(README.splitlines()) <= 200
    for name in choices("experiment"):
        assert f"`{name}`" in README, name
    assert len(COMMANDS) > 60


def test_the_python_example_needs_torch_alone(tmp_path: Path):
    start = "import torch\nfrom unet_diffusion.diffusion"
    (example,) = (block for _, _, block in BLOCKS if start in block)
    check = "assert images.shape == x0_hat.shape == (4, 1, 16, 16)"
    (tmp_path / "example.py").write_text(f"{ONLY_TORCH}{example}{check}")
    run_script(tmp_path / "example.py", cwd=tmp_path)


def test_the_pipeline_example_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)
    (example,) = (block for file, _, block in BLOCKS if "save_pretrained(" in block)
    scope: dict[str, Any] = {}
    exec(example, scope)
    assert scope["better"].shape == scope["denoised"].shape == (10, 1, 16, 16)
    assert "Frechet distance" in Path("my_model", "README.md").read_text()


def test_the_new_parts_of_extending_md_train(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Its files are put next to those of the package, and used together in one training."""
    for file, language, block in BLOCKS:
        if file.name != "extending.md" or language not in ("python", "yaml"):
            continue
        heading = re.match(r"(?:# @package.*\n)?# (added to )?(\S+)\n", block)
        assert heading, block
        path = Path(heading[2])
        module_name = ".".join(path.with_suffix("").parts[1:])
        if heading[1]:
            module = importlib.import_module(module_name)
            scope = {**vars(module), "metrics": {}}
            exec(block, scope)
            for name in ("WeightNorm", "MeanAbsoluteError"):
                monkeypatch.setattr(module, name, scope.get(name), raising=False)
        else:
            (tmp_path / path).parent.mkdir(parents=True, exist_ok=True)
            (tmp_path / path).write_text(block)
            if language == "python":
                package = importlib.import_module(module_name.rpartition(".")[0])
                folders = [*package.__path__, str((tmp_path / path).parent)]
                monkeypatch.setattr(package, "__path__", folders)
    callback = "{_target_: unet_diffusion.training.callbacks.WeightNorm}"
    search_path = f"hydra.searchpath=[file://{tmp_path / 'conf'}]"
    assert composed(search_path, "experiment=mine").model["channels"] == [64, 128]
    config = composed(
        search_path,
        *("data=dots", "model=plain", "sampler=renoise", "schedule=quadratic", "optimizer=sgd"),
        "objective=pseudo_huber",
        f"+callbacks.weight_norm={callback}",
        *("callbacks.progress_bar.refresh_rate=0", "precision=fp32", f"run_dir={tmp_path / 'run'}"),
        *("trainer.max_steps=2", "logger=csv", "optimizer.lr=1e-3"),
    )
    train(config)
    assert "train/weight_norm" in (tmp_path / "run" / "metrics.csv").read_text()
    Pipeline.from_pretrained(Run.open(tmp_path / "run"))
