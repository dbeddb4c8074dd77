"""Runs that are interrupted, and resumed as if they had not been."""

import json
import os
import shutil
import signal
import time
from pathlib import Path
from typing import Any

import faults
import pytest
import torch
import yaml
from faults import differences, final_state, is_equal
from helpers import FEW_BATCHES, SMALL, Script, Trained, composed, logged, scores, with_callback
from lightning.pytorch.callbacks import Callback
from PIL import Image
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from unet_diffusion.commands.train import train
from unet_diffusion.runs.checkpoints import load_checkpoint
from unet_diffusion.runs.run import Run

LESSON = (
    *(*SMALL, "callbacks.previews.num_images=1", "data.flip=true", "logger=csv"),
    *("+trainer.limit_train_batches=6", *FEW_BATCHES),
    *("trainer.max_steps=13", "trainer.val_check_interval=4", "trainer.log_every_n_steps=3"),
)
"""Epochs of six batches, and a validation after every four steps."""
RUNS = {
    "lesson": (*LESSON, "logger=tensorboard"),
    "one_step": (
        *LESSON,
        *("experiment=07_one_step", "data.num_clusters=10", "model.channels=[8,16]"),
        *("model.dropout=0.1", "trainer.max_time=null", "trainer.max_steps=13"),
        *("trainer.val_check_interval=4", "objective.start=0.2", "objective.reuse=3"),
        "objective.teacher.steps=2",
    ),
    "accumulated": (*LESSON, "trainer.accumulate_grad_batches=2", "trainer.max_steps=7"),
    "epochs": (*LESSON, "trainer.max_steps=-1", "trainer.max_epochs=2", "ema=default"),
    "killed": faults.TRAINING,
}


class Crash(Callback):
    """Raises after a step and its validation, or in the test."""

    def __init__(self, after: int) -> None:
        self.after = after

    def on_train_batch_start(self, trainer: Any, *_: Any) -> None:
        if trainer.global_step >= self.after:
            raise RuntimeError("crash")

    def on_test_start(self, *_: Any) -> None:
        raise RuntimeError("crash")


def crash(run: Path, after: int, overrides: tuple[str, ...]) -> None:
    with pytest.MonkeyPatch.context() as monkeypatch:
        with_callback(monkeypatch, Crash(after))
        with pytest.raises(RuntimeError, match="crash"):
            train(composed(*overrides, f"run_dir={run}"))


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory: pytest.TempPathFactory) -> Trained:
    """Uninterrupted runs by name, each trained once."""
    folder = tmp_path_factory.mktemp("uninterrupted")

    def run(name: str) -> Path:
        if not (folder / name).exists():
            torch.set_num_threads(1)
            train(composed(*RUNS[name], f"run_dir={folder / name}"))
        return folder / name

    return run


@pytest.mark.parametrize(
    ("name", "after"),
    [
        ("lesson", 2),  # before the first checkpoint
        ("lesson", 13),  # in the test
        ("one_step", 5),
        ("one_step", 13),
        ("accumulated", 5),
        ("epochs", 6),  # between two epochs
    ],
)
def test_crashed_run_resumes_exactly(uninterrupted: Trained, name: str, after: int, tmp_path: Path):
    run = tmp_path / "run"
    crash(run, after, RUNS[name])
    assert not (run / "metrics.json").exists()
    train(composed(*RUNS[name], f"run_dir={run}"))
    assert differences(uninterrupted(name), run) == []
    if name == "lesson":  # each step once, also in TensorBoard
        assert list(logged(run, "train/loss")) == [2, 5, 8, 11]
        events = (EventAccumulator(str(path)).Reload() for path in (uninterrupted(name), run))
        scalars = [[(e.step, e.value) for e in each.Scalars("train/loss")] for each in events]
        assert scalars[0] == scalars[1]


def test_resume_keeps_the_experiment_of_the_run_and_the_sampler_of_its_previews(
    uninterrupted: Trained, script: Script, tmp_path: Path
) -> None:
    run = Path(shutil.copytree(uninterrupted("one_step"), tmp_path / "run"))
    config = yaml.safe_load((run / "config.yaml").read_text())
    config["sampler"]["steps"] = 2
    (run / "config.yaml").write_text(yaml.safe_dump(config))
    status, _, errors = script("train", "resume=run", "trainer.max_steps=14")
    assert status == 0, errors
    resumed = Run.open(run)
    assert resumed.choices["experiment"] == "07_one_step"
    assert resumed.value("callbacks.checkpoint.monitor") is None
    assert resumed.value("callbacks.previews.sampler.steps") == 2
    assert load_checkpoint(run / "checkpoints" / "best.ckpt")["global_step"] == 14


@pytest.mark.slow
def test_killed_process_resumes_exactly_and_a_second_one_is_refused(
    uninterrupted: Trained, script: Script, tmp_path: Path
):
    run = tmp_path / "run"
    run.mkdir()
    (run / ".lock").touch()  # as if killed at the start
    process = faults.start(run)
    while not (run / "checkpoints" / "last.ckpt").exists():
        assert process.poll() is None, process.communicate()
        time.sleep(0.01)
    process.send_signal(signal.SIGSTOP)
    before = {path: path.stat().st_mtime_ns for path in run.rglob("*") if path.name != ".lock"}
    status, _, errors = script("train", *faults.TRAINING, f"run_dir={run}")
    assert (status, errors.count("\n")) == (2, 1)
    assert "another process is training" in errors
    assert {path: path.stat().st_mtime_ns for path in before} == before
    process.kill()
    process.communicate()
    assert not (run / "metrics.json").exists()
    process = faults.start(run)
    _, errors = process.communicate(timeout=300)
    assert process.returncode == 0, errors
    assert differences(uninterrupted("killed"), run) == []


class SendSignal(Callback):
    """Sends a signal to this process at a hook of the last step."""

    def __init__(self, hook: str, signal_number: int) -> None:
        self.signal_number = signal_number
        setattr(self, hook, self._send)

    def _send(self, trainer: Any, *_: object) -> None:
        if trainer.global_step == trainer.max_steps:
            os.kill(os.getpid(), self.signal_number)


def test_signal_after_the_last_step_keeps_the_scores_and_ends_a_sweep(
    script: Script, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    short = (*LESSON, "trainer.max_steps=4")
    commands = {name: (*short, f"run_dir={name}") for name in ("validation", "test")}
    sweep = ("-m", "seed=0,1", *short, "sweep_dir=sweep")
    for hook, number, is_resumed, command in (
        ("on_validation_start", signal.SIGINT, True, commands["validation"]),
        ("on_test_start", signal.SIGTERM, True, commands["test"]),
        ("on_test_end", signal.SIGTERM, False, sweep),
    ):
        with monkeypatch.context() as context:
            with_callback(context, SendSignal(hook, number))
            status, output, _ = script("train", *command)
        assert (status, "Resume with:" in output) == (128 + number, is_resumed)
        if is_resumed:
            assert script("train", *command)[0] == 0
    assert [path.name for path in (tmp_path / "sweep").glob("seed-*")] == ["seed-0"]
    runs = (tmp_path / name for name in ("validation", "test", "sweep/seed-0"))
    assert len({scores(run)["val/loss"] for run in runs}) == 1


def test_same_command_skips_a_finished_run_and_others_are_an_error(script: Script, tmp_path: Path):
    command = (*LESSON, "trainer.max_steps=2", "run_dir=run")
    assert script("train", *command)[0] == 0
    before = (tmp_path / "run" / "metrics.json").stat().st_mtime_ns
    status, output, _ = script("train", *command)
    assert (status, "run is finished" in output) == (0, True)
    status, _, errors = script("train", *command, "seed=3")
    assert (status, "contains a run with other overrides" in errors) == (2, True)
    status, _, errors = script("train", *command, "resume=run")
    assert (status, "cannot be combined" in errors) == (2, True)
    assert (tmp_path / "run" / "metrics.json").stat().st_mtime_ns == before


def test_raised_limit_continues_a_finished_and_moved_run(script: Script, tmp_path: Path):
    linear = (*LESSON, "lr_schedule=linear", "optimizer.lr=0.01", "trainer.log_every_n_steps=1")
    train(composed(*linear, "trainer.max_steps=4", f"run_dir={tmp_path / 'linear'}"))
    assert script("train", "resume=linear", "trainer.max_steps=8")[0] == 0
    rate = logged(tmp_path / "linear", "learning_rate")[5]
    assert rate == pytest.approx(0.01 * (1 - 5 / 8) / (1 - 0.03))
    constant = (*LESSON, "~lr_schedule")
    for name, steps in (("run", 5), ("expected", 9)):
        train(composed(*constant, f"trainer.max_steps={steps}", f"run_dir={tmp_path / name}"))
    shutil.move(tmp_path / "run", tmp_path / "moved")
    status, _, errors = script("train", "resume=moved", "trainer.max_steps=9")
    assert status == 0, errors
    moved = tmp_path / "moved"
    a, b = final_state(tmp_path / "expected"), final_state(moved)
    for key in ("state_dict", "optimizer_states", "best_model_score"):
        assert is_equal(a[key], b[key]), key
    assert scores(moved) == scores(tmp_path / "expected")
    assert (moved / "metrics-5.json").exists()
    assert not (tmp_path / "run").exists()
    assert "finished" in script("train", "resume=moved")[1]


def test_resume_accepts_the_new_folder_of_moved_images(script: Script, tmp_path: Path):
    images = tmp_path / "images"
    images.mkdir()
    for i in range(60):
        Image.new("L", (16, 16), i).save(images / f"{i:02}.png")
    own = ("data=image_folder", "data.root=images", "data.channels=1", "data.image_size=16")
    small = (*SMALL, "data.batch_size=8", "callbacks.previews=null", "logger=csv")
    assert script("train", *own, *small, "trainer.max_steps=2", "run_dir=run")[0] == 0
    images.rename(tmp_path / "moved")
    longer = ("resume=run", "trainer.max_steps=4")
    assert f"data.root={images}: not a folder" in script("train", *longer)[2]
    assert script("train", *longer, "data.root=moved")[0] == 0


@pytest.fixture
def copied(short_run: Path, tmp_path: Path) -> Path:
    """A copy of `short_run` in the working directory of `script`."""
    return Path(shutil.copytree(short_run, tmp_path / "run"))


def test_changed_model_noise_or_seed_is_an_error(copied: Path, script: Script):
    for change, message in {
        "model.channels=[8,16]": "the run has model.channels=[8, 16, 32]",
        "model=unet": "the run has model=",
        "seed=3": "the run has seed=0",
        "noise.percent=0.3": "the run has noise.percent=0.5",
    }.items():
        status, _, errors = script("train", "resume=run", "trainer.max_steps=20", change)
        assert (status, errors.count("\n"), message in errors) == (2, 1, True), errors


def test_callbacks_and_loggers_of_a_resume_are_those_of_the_command(
    copied: Path, script: Script, tmp_path: Path
) -> None:
    config = yaml.safe_load((copied / "config.yaml").read_text())
    foreign = {"_target_": "os.system", "command": f"touch {tmp_path / 'canary'}"}
    mlflow = "lightning.pytorch.loggers.MLFlowLogger"
    elsewhere = f"sqlite:///{tmp_path / 'canary.db'}"
    config["callbacks"]["checkpoint"]["dirpath"] = str(tmp_path / "canary")
    config["callbacks"]["x"] = config["logger"]["x"] = config["trainer"]["profiler"] = foreign
    config["logger"]["mlflow"] = {"_target_": mlflow, "tracking_uri": elsewhere}
    (tmp_path / "canary.yaml").write_text(yaml.safe_dump({"x": foreign}))
    # not a choice of the group
    above = os.path.relpath(tmp_path / "canary", faults.ROOT / "conf" / "logger")
    for choice, recorded, message in (
        (above, {}, ""),
        ("mlflow", {"tracking_uri": elsewhere}, "recorded.loggers.mlflow.tracking_uri"),
        ("mlflow", foreign, "recorded.loggers.mlflow._target_"),
        ("none", {}, "os.system is not an allowed class"),
    ):
        config["choices"]["logger"] = choice
        if choice == "none":
            config["optimizer"] = foreign
        config["recorded"]["loggers"] = {"mlflow": recorded}
        (copied / "config.yaml").write_text(json.dumps(config))
        status, _, errors = script("train", "resume=run", "trainer.max_steps=13")
        assert (status, message in errors) == (2 if message else 0, True), errors
    assert [file.name for file in tmp_path.glob("canary*")] == ["canary.yaml"]


def test_checkpoint_that_names_other_files_deletes_nothing(copied: Path, script: Script):
    """Lightning's ModelCheckpoint deletes the file that it remembers as the former best."""
    (copied / "notes.txt").touch()
    checkpoint = copied / "checkpoints" / "last.ckpt"
    content = torch.load(checkpoint, weights_only=True)
    path, worse = str(copied / "notes.txt"), torch.tensor(99.0)
    for state in content["callbacks"].values():
        if "best_k_models" in state:
            state |= {"best_k_models": {path: worse}, "best_model_score": worse}
            state |= {"kth_best_model_path": path, "kth_value": worse, "best_model_path": path}
    torch.save(content, checkpoint)
    assert script("train", "resume=run", "trainer.max_steps=13")[0] == 0
    assert (copied / "notes.txt").exists()


def test_best_checkpoint_resumes_if_the_last_is_missing_or_truncated(copied: Path, script: Script):
    last, events = copied / "checkpoints" / "last.ckpt", set(copied.glob("events*"))
    changes = ("trainer.max_steps=14", "logger=csv", "accelerator=cpu")
    last.write_bytes(last.read_bytes()[:5000])
    status, _, errors = script("train", "resume=run", *changes)
    assert (status, "last.ckpt: damaged, truncated" in errors) == (2, True)
    last.unlink()
    step = load_checkpoint(copied / "checkpoints" / "best.ckpt")["global_step"]
    status, output, _ = script("train", "resume=run", *changes)
    assert (status, "best.ckpt" in output) == (0, True)
    assert step > 0
    assert min(logged(copied, "train/loss")) < step  # the earlier rows are kept
    assert set(copied.glob("events*")) == events  # the logger may change
    assert script("train", "resume=run/checkpoints/best.ckpt", "trainer.max_steps=15")[0] == 0
    assert final_state(copied)["global_step"] == 15
