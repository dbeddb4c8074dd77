"""Sweeps: what a job is worth, failures among others, going on after an interruption, launchers, Optuna, memory."""

import contextlib
import json
import os
import re
import signal
import sqlite3
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import joblib
import optuna
import pytest
from helpers import ROOT, SMALL, composed
from hydra.errors import MissingConfigException

from unet_diffusion.errors import UserError
from unet_diffusion.mistakes import explain
from unet_diffusion.training.experiment import train
from unet_diffusion.training.job import worth

Script = Callable[..., tuple[int, str, str]]
TINY = (
    *SMALL,
    "trainer.max_steps=1",
    "callbacks.pictures.num_images=1",
    "+trainer.limit_val_batches=1",
    "+trainer.limit_test_batches=1",
)
STEPS = ("trainer.max_steps=6", "trainer.val_check_interval=2", "callbacks.pruning.pruner.n_warmup_steps=0")
WATCH = """
import os
from hydra.experimental.callback import Callback
class Watch(Callback):
    def on_job_end(self, config, job_return, **kwargs):
        import torch
        pages = int(open("/proc/self/statm").read().split()[1])
        with open({file!r}, "a") as stream:
            print(pages, len(os.listdir("/proc/self/fd")), torch.get_num_threads(), job_return.return_value, file=stream)
"""


def jobs(sweep: Path) -> list[str]:
    return sorted(path.name for path in sweep.iterdir() if path.is_dir() and not path.name.startswith("."))


def scores(run: Path) -> dict[str, float]:
    found: dict[str, float] = json.loads((run / "metrics.json").read_text())["scores"]
    return found


def started(*arguments: str, cwd: Path, **environment: str) -> subprocess.Popen[str]:
    command = [sys.executable, str(ROOT / "scripts" / "train.py"), *arguments]
    variables = os.environ | {"OMP_NUM_THREADS": "1", "OMP_WAIT_POLICY": "PASSIVE"} | environment
    pipe = subprocess.PIPE
    given = {name: value for name, value in variables.items() if value}
    return subprocess.Popen(command, cwd=cwd, env=given, stdout=pipe, stderr=pipe, text=True)


def watched(tmp_path: Path, *arguments: str, **environment: str) -> list[list[str]]:
    """What each job of a sweep, in a process of its own, used in the end: pages of memory, open files, threads, its value."""
    (tmp_path / "watching.py").write_text(WATCH.format(file=str(tmp_path / "watched.txt")))
    paths = os.pathsep.join([str(tmp_path), os.environ.get("PYTHONPATH", "")])
    typed = ["-m", *arguments, *TINY, "+hydra.callbacks.watch._target_=watching.Watch"]
    process = started(*typed, cwd=tmp_path, **{"PYTHONPATH": paths} | environment)
    _, err = process.communicate(timeout=300)
    assert process.returncode == 0, err
    return [line.split() for line in (tmp_path / "watched.txt").read_text().splitlines()]


def test_a_job_is_worth_the_named_score():
    assert worth({"val/loss": 0.2, "test/mse": 0.1}, "test/mse") == 0.1
    assert worth({"val/loss": float("nan")}, "val/loss") is None
    assert worth({}, "val/loss") is None


def test_a_metric_that_will_not_be_there_is_refused_before_training(tmp_path: Path):
    with pytest.raises(UserError, match=r"optimized_metric=test/fid is none of.* val/loss, test/mse, test/psnr, test/ssim"):
        train(composed(*SMALL, "optimized_metric=test/fid"), tmp_path / "run")
    with pytest.raises(UserError, match=r"choose one of val/loss, test/mse, test/psnr$"):  # too small for SSIM
        train(composed(*SMALL, "optimized_metric=test/ssim", "data.image_size=8"), tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_failed_jobs_are_named_and_the_others_go_on(script: Script, tmp_path: Path):
    crash = ["+callbacks.crash._target_=helpers.Crash", "+callbacks.crash.after=1,99"]
    status, out, err = script("train", "-m", *crash, "noise.percent=30,0.3", *TINY, "sweep_dir=s")
    assert status == 1  # one of them is no mistake in what was typed
    assert "error: job 0 (+callbacks.crash.after=1 noise.percent=30): noise.percent=30 must be between" in err
    assert "error: job 1 (+callbacks.crash.after=1 noise.percent=0.3): RuntimeError: a crash" in err
    assert "Traceback" in err
    assert "error: 3 jobs of the sweep failed: 0 (" in err
    assert "the same command with sweep_dir=s goes on with what is left" in err
    assert "Scores of the 1 jobs" in out
    assert "003-" in out
    failures = [json.loads(line) for line in (tmp_path / "s" / "failures.jsonl").read_text().splitlines()]
    assert [(failure["job"], failure["bug"]) for failure in failures] == [(0, False), (1, True), (2, False)]


def test_a_loss_that_is_not_finite_is_a_failure_of_its_job_alone(script: Script, tmp_path: Path):
    typed = ("optimizer.lr=1e30,1e-3", "optimizer.weight_decay=1e-3", *TINY, "trainer.max_steps=3", "sweep_dir=s")
    status, _, err = script("train", "-m", *typed)
    assert status == 2
    assert re.search(r"error: job 0 \(optimizer.lr=1e\+30\): the (loss|gradient|validation loss) is not finite in step", err)
    (done,) = (tmp_path / "s").glob("*/metrics.json")
    assert done.parent.name == "001-optimizer.lr-0.001"


def test_a_sweep_goes_on_with_what_is_left(script: Script, tmp_path: Path):
    typed = ("-m", "seed=0,1", *TINY, "sweep_dir=s")
    assert script("train", *typed)[0] == 0
    sweep = tmp_path / "s"
    names = jobs(sweep)
    first, second = (scores(sweep / name) for name in names)
    (sweep / names[1] / "metrics.json").unlink()  # as if killed in its middle
    (sweep / names[1] / "marked").touch()
    for file in (sweep / names[1]).iterdir():
        os.utime(file, (0, 0))
    made = (sweep / names[0] / "metrics.json").stat().st_mtime_ns
    status, out, _ = script("train", "-m", "seed=2,0,1", *TINY, "sweep_dir=s")
    assert status == 0
    assert "1 of its jobs are finished" in out
    assert f"{names[0]} is finished: skipped" in out
    assert (sweep / names[0] / "metrics.json").stat().st_mtime_ns == made
    assert (sweep / names[1] / "marked").exists()  # it went on where it was
    assert f"Going on with s/{names[1]} after step" in out
    assert jobs(sweep) == ["000-seed-0", "001-seed-1", "002-seed-2"]  # 0 was taken: no two begin alike
    assert scores(sweep / names[0]) == first
    assert scores(sweep / names[1]) == second


def test_any_other_folder_is_no_sweeps(script: Script, tmp_path: Path):
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos" / "cat.png").touch()
    status, _, err = script("train", "-m", "seed=0,1", *TINY, "sweep_dir=photos")
    assert (status, err.count("error")) == (2, 1)
    assert "sweep_dir=photos is no sweep's folder" in err
    assert [path.name for path in (tmp_path / "photos").iterdir()] == ["cat.png"]


def test_folders_of_long_overrides_keep_apart(script: Script, tmp_path: Path):
    typed = ("callbacks.learning_rate.logging_interval=step,epoch", "+trainer.enable_autolog_hparams=true,false")
    status, _, _ = script("train", "-m", *typed, *TINY, "sweep_dir='a folder, with=signs'")
    assert status == 0
    names = jobs(tmp_path / "a folder, with=signs")
    assert len({name[4:] for name in names}) == len(names) == 4


@pytest.mark.parametrize("choice", ["noise_percent", "widths", "levels_sampler", "learning_rate"])
def test_ready_sweeps_sweep_without_m(choice: str, script: Script, tmp_path: Path):
    """Jobs that cannot be, so that all of them are named at once."""
    few = ["hydra.sweeper.n_trials=3"] if choice == "learning_rate" else []
    status, _, err = script("train", f"sweep={choice}", "seed=-1", *few)
    assert status == 2
    first = {
        "noise_percent": "noise.percent=0.1",
        "widths": "model.channels=[4,8,16]",
        "levels_sampler": "noise=fixed sampler=one_shot",
        "learning_rate": "optimizer.lr=0.0",
    }[choice]
    assert f"error: job 0 ({first}" in err
    number = {"noise_percent": 9, "widths": 4, "levels_sampler": 9, "learning_rate": 3}[choice]
    assert err.count("seed=-1 must be") == number
    assert not (tmp_path / "runs").exists()


@pytest.mark.parametrize("word", ["trainer.devices=2", "+trainer.num_nodes=2", "trainer.strategy=ddp_spawn"])
def test_jobs_of_several_processes_are_refused_however_they_are_asked_for(word: str, script: Script):
    status, _, err = script("train", "-m", "seed=0", *SMALL, "trainer.accelerator=cpu", word)
    assert status == 2
    assert "does not go with -m" in err


def test_a_launcher_that_is_not_installed_is_named():
    error = MissingConfigException("Could not find 'hydra/launcher/joblib'", "hydra/launcher/joblib")
    assert explain(error, [], ROOT / "conf" / "train.yaml") == (
        "hydra/launcher/joblib is not installed: type pip install -e '.[sweeps]'"
    )


def trials(sweep: Path) -> list[tuple[int, str, float, float | None]]:
    """(number, state, learning rate, value) of each trial of a study."""
    query = """
        SELECT number, state, param_value, value FROM trials
        JOIN trial_params USING (trial_id) LEFT JOIN trial_values USING (trial_id) ORDER BY number
    """
    with sqlite3.connect(sweep / "optuna.db") as connection:
        return connection.execute(query).fetchall()


def test_optuna_learns_of_failures_as_failures(script: Script, tmp_path: Path):
    study = ("sweep=optuna", "hydra/sweeper/sampler=random", "hydra.sweeper.sampler.seed=0", "hydra.sweeper.n_trials=4")
    typed = (*study, "optimizer.lr=choice(-1,1e-3)", "sweep_dir=s", *TINY)
    status, out, err = script("train", *typed, "optimized_metric=test/mse", "~callbacks.pruning")
    assert status == 2
    assert "(optimizer.lr=-1): optimizer: optimizer.lr=-1 is refused" in err
    (run,) = (tmp_path / "s").glob("*/metrics.json")
    states = {state: value for _, state, _, value in trials(tmp_path / "s")}
    assert states == {"FAIL": None, "COMPLETE": scores(run.parent)["test/mse"]}
    assert "is finished: skipped" in out  # the same values again give the same score, for nothing


def test_a_study_of_failures_alone_ends_in_sentences(script: Script, tmp_path: Path):
    optuna.logging.disable_default_handler()  # it holds on to the stderr of an earlier test
    status, _, err = script("train", "sweep=optuna", "optimizer.lr=interval(-2,-1)", "hydra.sweeper.n_trials=2", *TINY)
    assert status == 2
    assert "error: none of the study's trials succeeded" in err
    assert "Traceback" not in err
    assert not (tmp_path / "runs").exists()


@pytest.mark.slow
def test_a_killed_study_goes_on_and_ends_hopeless_trials_early(script: Script, tmp_path: Path):
    sweep = tmp_path / "s"
    typed = ("sweep=learning_rate", "hydra.sweeper.n_trials=8", "sweep_dir=s", *TINY, *STEPS)
    killed = started(*typed, cwd=tmp_path)
    while killed.poll() is None and not list(sweep.glob("004-*/overrides.yaml")):
        time.sleep(0.02)
    killed.send_signal(signal.SIGKILL)
    killed.communicate()
    assert [state for _, state, _, _ in trials(sweep)] == ["COMPLETE"] * 4 + ["RUNNING"]
    before = trials(sweep)
    status, out, _ = script("train", *typed)
    assert status == 0
    assert "Its study has 4 of 8 trials" in out
    after = trials(sweep)
    assert after[:4] == before[:4]
    assert after[4][2] == before[4][2]  # the interrupted one is done again with its own value
    assert [state for _, state, _, _ in after] == ["COMPLETE"] * 8
    assert len({rate for _, _, rate, _ in after}) == 8
    assert [name[:3] for name in jobs(sweep)] == [f"{number:03d}" for number in range(8)]
    assert "Ended at step 2: its validation loss" in out
    steps = [json.loads((sweep / name / "metrics.json").read_text())["steps"] for name in jobs(sweep)]
    assert steps[:4] == [6, 6, 6, 6]  # the first few see no others to be compared with
    assert 2 in steps[4:]


@pytest.mark.slow
def test_several_at_once_share_the_threads(tmp_path: Path):
    typed = ("seed=0,1", "hydra/launcher=joblib", "hydra.launcher.n_jobs=2", "sweep_dir=s")
    found = watched(tmp_path, *typed, OMP_NUM_THREADS="")
    half = str(max(1, joblib.cpu_count() // 2))
    assert [threads for _, _, threads, _ in found] == [half, half]
    assert sorted(value for *_, value in found) == sorted(
        str(scores(tmp_path / "s" / f"00{seed}-seed-{seed}")["val/loss"]) for seed in (0, 1)
    )


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/cmdline").exists(), reason="reads Linux's list of processes")
def test_submitit_runs_jobs_in_processes_of_their_own_and_starts_them_again(tmp_path: Path):
    """One fails, which is said; the other is warned that its time is up, put into the queue again, and goes on."""
    typed = (*TINY, "noise.percent=0.3,30", "trainer.max_steps=60", "trainer.val_check_interval=2")
    process = started("-m", *typed, "hydra/launcher=submitit_local", "sweep_dir=s", cwd=tmp_path)
    while process.poll() is None and not list(tmp_path.glob("s/*/checkpoints/last.ckpt")):
        time.sleep(0.02)
    for file in Path("/proc").glob("[0-9]*/cmdline"):
        with contextlib.suppress(OSError):
            words = file.read_bytes()
            if b"submitit.core._submit" in words and str(tmp_path).encode() in words:
                os.kill(int(file.parent.name), signal.SIGUSR2)
    out, err = process.communicate(timeout=300)
    assert process.returncode == 2
    assert "error: job 1 (noise.percent=30): noise.percent=30 must be between" in err
    assert "Scores of the 1 jobs" in out
    assert "Going on with s/000-noise.percent-0.3 after step" in "".join(
        file.read_text() for file in tmp_path.glob("s/.submitit/*/*log.out")
    )
    assert jobs(tmp_path / "s") == ["000-noise.percent-0.3"]


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="reads Linux's figures")
def test_twenty_jobs_need_the_memory_and_the_files_of_three(tmp_path: Path):
    found = watched(tmp_path, "seed=range(0,20)")
    pages, files = ([int(line[i]) for line in found] for i in (0, 1))
    assert len(found) == 20
    assert pages[-1] < 1.05 * pages[2]
    assert files[-1] == files[2]
