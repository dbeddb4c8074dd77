import json
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from helpers import composed
from PIL import Image

from unet_diffusion.evaluation.evaluate import evaluate


def test_runs_side_by_side(short_run: Path, generator: Path, script: Callable, tmp_path: Path):
    for name, run in (("a", short_run), ("b", generator)):
        shutil.copytree(run, tmp_path / "runs" / name)
    status, out, _ = script("compare", f"runs={tmp_path / 'runs'}", "num_images=200", "output=both.png")
    assert status == 0
    assert out.index("06_classes") < out.index("lesson")  # in the order of their names
    assert out.count("200 images") == 2
    picture = np.asarray(Image.open(tmp_path / "both.png").convert("L")).astype(float)
    left, right = np.array_split(picture[50:-80], 2, axis=1)
    assert min(left.std(), right.std()) > 25  # images, not only words on white


def test_a_folder_without_runs_is_refused(script: Callable, tmp_path: Path):
    status, _, err = script("compare")
    assert status == 2
    assert "runs= is needed" in err
    for where in (tmp_path, tmp_path / "nowhere"):
        status, _, err = script("compare", f"runs={where}")
        assert status == 2
        assert "holds no runs" in err


def test_every_score_says_how_it_was_taken(generator: Path, capsys: pytest.CaptureFixture[str]):
    typed = ("num_images=200", "levels=[]", "guidance=1", "seed=3", "++sampler.steps=2")
    evaluate(composed(f"run={generator}", *typed, config="evaluate"))
    said = capsys.readouterr().out
    record = json.loads((generator / "evaluation.json").read_text())
    score = record["generation"]
    assert "levels" not in record
    assert score["sampler"] == "DDIM(steps=2, grid=uniform, clipping=static, eta=0.0)"
    assert (score["label"], score["images"], score["nfe"], score["guidance"], score["seed"], score["weights"]) == (
        "auto",
        200,
        4,
        1,
        3,
        "ema",
    )
    assert score["reference"] == "test split of fashion_mnist_mini, 1000 images at 16x16"
    assert 0 < score["floor"] < 1 < score["frechet_distance"]
    assert 0 <= score["class_accuracy"] <= 1
    assert f"{score['frechet_distance']:.2f} (real images: {score['floor']:.2f})" in said
    again = evaluate(composed(f"run={generator}", *typed, config="evaluate"))["generation"]
    assert again["frechet_distance"] == pytest.approx(score["frechet_distance"], rel=1e-4)
