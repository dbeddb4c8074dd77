"""Sweeps: directories, failing jobs, resuming, launchers and Optuna."""

import re
import runpy
import sqlite3
import sys
from pathlib import Path

import pytest
from helpers import ROOT, SMALL, Script, scores

TINY = (
    *(*SMALL, "trainer.max_steps=1", "callbacks.previews.num_images=1", "logger=csv"),
    *("+trainer.limit_val_batches=1", "+trainer.limit_test_batches=1", "sweep_dir=s"),
)


def jobs(sweep: Path) -> list[str]:
    return sorted(path.name for path in sweep.iterdir() if path.is_dir())


def test_failing_jobs_are_named_and_the_others_run(script: Script, tmp_path: Path):
    command = ("-m", "data.val_fraction=0.1,0.999", "optimizer.lr=1e-3,1e30", *TINY)
    status, output, errors = script("train", *command, "trainer.max_steps=3")
    assert (status, "Traceback" in errors) == (1, False)
    assert "error: job 1 (data.val_fraction=0.1 optimizer.lr=1e+30): The " in errors
    assert "error: job 2 (data.val_fraction=0.999 optimizer.lr=0.001): data.batch_size=" in errors
    assert "Scores of the sweep in s:" in output
    assert len(list((tmp_path / "s").glob("*/metrics.json"))) == 1


def test_several_processes_in_a_sweep_are_an_error(script: Script):
    status, _, errors = script("train", "-m", "seed=0", "accelerator=ddp", *TINY)
    assert (status, "trainer.devices=2: expected 1 in a sweep (-m)." in errors) == (1, True)


def test_same_command_skips_finished_jobs_and_resumes_the_others(script: Script, tmp_path: Path):
    command = ("-m", "seed=0,1", *TINY)
    status, output, _ = script("train", *command)
    assert (status, "compare with" in output) == (0, False)  # the jobs have the same loss
    sweep = tmp_path / "s"
    assert jobs(sweep) == ["seed-0", "seed-1"]
    before = [scores(sweep / name) for name in jobs(sweep)]
    written = (sweep / "seed-0" / "metrics.json").stat().st_mtime_ns
    (sweep / "seed-1" / "metrics.json").unlink()  # as if killed
    status, output, _ = script("train", "-m", "seed=2,0,1", *TINY)
    assert (status, jobs(sweep)) == (0, ["seed-0", "seed-1", "seed-2"])
    assert "1 jobs are finished" in output
    assert "s/seed-0 is finished" in output
    assert "Resuming s/seed-1 from" in output
    assert (sweep / "seed-0" / "metrics.json").stat().st_mtime_ns == written
    assert [scores(sweep / name) for name in jobs(sweep)[:2]] == before
    losses = {name: scores(sweep / name)["val/loss"] for name in jobs(sweep)}
    (best,) = re.findall(r"^  (\S+) .*best$", output, re.MULTILINE)
    assert best == min(losses, key=losses.__getitem__)


def test_directories_have_safe_and_different_names(script: Script, tmp_path: Path):
    lists = ("model.channels=[4,8],[4,8,16]", "sweep_dir='a folder, with=signs'")
    status, output, errors = script("train", "-m", *TINY, *lists, "prediction=x0,velocity")
    assert (status, "compare with evaluate.py" in output) == (0, True), errors  # not by the loss
    names = jobs(tmp_path / "a folder, with=signs")
    assert len(names) == 4
    assert not any(set("=,[]") & set(name) for name in names)


def test_optuna_minimizes_the_optimized_metric(script: Script, tmp_path: Path):
    command = ("sweep=learning_rate", "hydra.sweeper.n_trials=2", *TINY)
    status, output, errors = script("train", *command)
    assert status == 0, errors
    with sqlite3.connect(tmp_path / "s" / "optuna.db") as connection:
        values = [value for (value,) in connection.execute("SELECT value FROM trial_values")]
    found = [scores(tmp_path / "s" / name)["val/loss"] for name in jobs(tmp_path / "s")]
    assert len(found) == 2
    assert sorted(values) == sorted(found)
    assert "Scores of the sweep in s:" in output


@pytest.mark.slow
def test_joblib_runs_jobs_in_processes_and_reports_their_failures(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    launcher = ("hydra/launcher=joblib", "hydra.launcher.n_jobs=2")
    monkeypatch.chdir(tmp_path)
    arguments = ["train.py", "-m", "data.val_fraction=0.1,0.999", *TINY, *launcher]
    monkeypatch.setattr(sys, "argv", arguments)
    with pytest.raises(SystemExit) as exit_info:
        runpy.run_path(str(ROOT / "scripts" / "train.py"), run_name="__main__")
    assert exit_info.value.code == 1
    # capfd also captures what the job processes print.
    assert re.search(r"error: job 1 .*: data.batch_size=", capfd.readouterr().err)
    assert jobs(tmp_path / "s") == ["data.val_fraction-0.1"]
    assert "test/mse" in scores(tmp_path / "s" / "data.val_fraction-0.1")
