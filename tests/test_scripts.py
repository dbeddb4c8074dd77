"""The scripts as a user runs them: real processes, real images, from a folder of their own."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers import SMALL, run_script, weights
from PIL import Image
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

pytestmark = pytest.mark.slow


def test_train_sample_evaluate_also_from_elsewhere_and_after_a_move(tmp_path: Path):
    out = run_script("train", *SMALL, "trainer.max_steps=60", "name=first", cwd=tmp_path)
    (path,) = (tmp_path / "runs" / "first").iterdir()
    for said in (f"run=runs/first/{path.name}", "tensorboard --logdir runs/first", "MSE", "pictures"):
        assert said in out
    moved = tmp_path / "elsewhere" / "moved"
    moved.parent.mkdir()
    shutil.move(path, moved)
    run_script("sample", f"run={moved}", "num_images=5", cwd=tmp_path / "elsewhere")
    with np.load(moved / "samples" / "seed-0" / "samples.npz") as arrays:
        assert arrays["arr_0"].shape == (5, 16, 16, 1)
    table = run_script("evaluate", "run=moved", "levels=[0.2,0.8]", cwd=tmp_path / "elsewhere")
    (evaluation,) = (moved / "evaluations").iterdir()
    record = json.loads((evaluation / "evaluation.json").read_text())
    assert [level["percent"] for level in record["levels"]] == [0.2, 0.5, 0.8]
    trained = record["levels"][1]
    assert trained["network"]["mse"] < trained["noisy"]["mse"]  # 60 steps are enough to beat doing nothing
    assert f"{trained['network']['mse']:.4f}" in table
    assert trained["network"]["mse"] == pytest.approx(
        json.loads((moved / "metrics.json").read_text())["scores"]["test/mse"], rel=1e-4
    )
    assert Image.open(evaluation / "denoising.png").size[0] > 300


def test_a_sweep_of_two_jobs_is_comparable_in_tensorboard(tmp_path: Path):
    run_script("train", "-m", "noise.percent=0.1,0.7", *SMALL, "trainer.max_steps=3", cwd=tmp_path)
    (sweep,) = (tmp_path / "runs" / "lesson").iterdir()
    jobs = sorted(path for path in sweep.iterdir() if path.is_dir())
    assert [job.name for job in jobs] == ["000-noise.percent-0.1", "001-noise.percent-0.7"]
    assert not any(set("=,[]") & set(job.name) for job in jobs)
    found = {}
    for job in jobs:
        content = EventAccumulator(str(job)).Reload().PluginTagToContent("hparams")
        assert "_hparams_/session_start_info" in content
        found[json.loads((job / "metrics.json").read_text())["scores"]["test/mse"]] = job
    assert len(found) == 2


def test_a_sweep_over_names_keeps_one_folder(tmp_path: Path):
    """As one over experiments does, each of which has a name of its own."""
    run_script("train", "-m", "name=a,b", *SMALL, "trainer.max_steps=1", cwd=tmp_path)
    (sweep,) = (tmp_path / "runs").glob("*/*")
    assert sorted(path.name for path in sweep.iterdir() if path.is_dir()) == ["000-name-a", "001-name-b"]


def test_two_processes_with_one_seed_give_the_same_weights(tmp_path: Path):
    for name in ("a", "b"):
        run_script("train", *SMALL, "trainer.max_steps=5", f"name={name}", cwd=tmp_path, threads=2)
    a, b = (weights(next((tmp_path / "runs" / name).iterdir())) for name in ("a", "b"))
    assert all(torch.equal(a[key], b[key]) for key in a)
