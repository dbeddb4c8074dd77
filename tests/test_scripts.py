"""The scripts one after another, as in the README."""

import json
import shutil
from pathlib import Path

import pytest
from helpers import SMALL, Script


def test_train_then_evaluate_and_report_after_a_move(script: Script, tmp_path: Path):
    status, out, _ = script("train", *SMALL, "trainer.max_steps=60", "name=first")
    assert status == 0
    (path,) = (tmp_path / "runs" / "first").iterdir()
    for text in (f"run=runs/first/{path.name}", "tensorboard --logdir runs/first", "MSE"):
        assert text in out
    moved = Path(shutil.move(path, tmp_path / "moved"))
    options = ("num_samples=0", "noise_levels=[0.2,0.8]")
    status, table, _ = script("evaluate", "run=moved", *options)
    assert status == 0
    (evaluation,) = (moved / "evaluations").iterdir()
    record = json.loads((evaluation / "evaluation.json").read_text())
    assert [level["t"] for level in record["noise_levels"]] == [0.2, 0.5, 0.8]
    trained = record["noise_levels"][1]["scores"]
    assert trained["network"]["mse"] < trained["noisy"]["mse"]
    assert f"{trained['network']['mse']:.4f}" in table
    assert (record["training_t"], record["generation"]) == (0.5, None)
    assert " 0.50*" in table  # the noise level of the training is added and marked
    assert " 0.20 " in table
    scores = json.loads((moved / "metrics.json").read_text())["scores"]
    assert trained["network"]["mse"] == pytest.approx(scores["test/mse"], rel=1e-4)
    assert script("report", "runs=moved")[0] == 0
    assert (tmp_path / "report" / "report.html").is_file()
