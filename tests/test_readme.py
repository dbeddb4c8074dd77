"""What the README shows works as it stands there."""

import re
import subprocess
import sys

import pytest
import torch
from helpers import ROOT, composed

from unet_diffusion.data.cache import cached_split
from unet_diffusion.diffusion import LinearSchedule

README = (ROOT / "README.md").read_text()
ONLY_TORCH = """
import sys
for name in ("lightning", "pytorch_lightning", "hydra", "omegaconf", "torchvision", "torchmetrics", "matplotlib"):
    sys.modules[name] = None  # importing it fails
"""


@pytest.mark.parametrize(
    ("text", "reports"), [("README.md", ("road", "guidance", "percent")), ("docs/scores.md", ("denoising",))]
)
def test_tables_of_scores_are_those_of_the_reports(text: str, reports: tuple[str, ...]):
    tables = re.findall(r"(?:^\| run \|.*\n)(?:^\|.*\n)+", (ROOT / text).read_text(), flags=re.MULTILINE)
    assert len(tables) == len(reports)
    for table, report in zip(tables, reports, strict=True):
        assert table in (ROOT / "docs" / "reports" / report / "report.md").read_text()


def test_pictures_are_there():
    for text in (ROOT / "README.md", *ROOT.glob("docs/**/*.md")):
        for target in re.findall(r"\]\(([^)#]+)\)", text.read_text()):
            assert "://" in target or (text.parent / target).exists(), f"{text}: {target}"


def python_blocks() -> list[str]:
    return re.findall(r"```python\n(.*?)```", README, flags=re.DOTALL)


def test_the_prompts_lines_need_nothing_but_torch():
    (prompt,) = (block for block in python_blocks() if "import torch\n" in block)
    assert len([line for line in prompt.splitlines() if line]) < 10
    check = "\nassert images.shape == x0_hat.shape == (4, 1, 16, 16)"
    done = subprocess.run([sys.executable, "-c", ONLY_TORCH + prompt + check], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_the_new_dataset_can_be_cached(tmp_path):
    (block,) = (block for block in python_blocks() if "class Dots" in block)
    scope: dict = {}
    exec(block, scope)
    cached = cached_split(scope["Dots"](), "test", None, (16, 16), 1, tmp_path)
    assert cached is not None
    assert cached.images.shape == (1000, 16, 16, 1)


@pytest.mark.parametrize(
    "line", re.findall(r"^python scripts/train\.py (?!--cfg)(.+?)(?:  +#.*)?$", README, flags=re.MULTILINE)
)
def test_the_overrides_compose(line: str):
    typed = [word.split(",")[0] if line.startswith("-m") else word for word in line.split() if not word.startswith("-")]
    composed(*typed)


def test_the_table_of_groups_is_complete():
    table = README[README.index("## Config groups") : README.index("## A run folder")]
    for file in (ROOT / "conf").glob("*/*.yaml"):
        if file.stem != "from_run":
            assert f"`{file.stem}`" in table, file


def test_the_new_sampler_draws():
    (block,) = (block for block in python_blocks() if "class Again" in block)
    scope: dict = {}
    exec(block, scope)

    class HalfOfWhatItSees:
        evaluations = 1
        schedule = LinearSchedule()

        def __call__(self, xt, t, label=None):
            return xt / 2

    drawn = scope["Again"](steps=3).run(HalfOfWhatItSees(), torch.ones(1, 1, 2, 2), noise=lambda: torch.zeros(1, 1, 2, 2))
    # from 1: half of what it sees, times alpha of the next level (1/3, 2/3, 1)
    assert drawn.images.flatten().tolist() == pytest.approx([1 / 2 / 3 / 2 * 2 / 3 / 2] * 4)
    assert drawn.nfe == 3
