"""Runs that end before their time, and go on."""

import copy
import csv
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import lightning as L
import numpy as np
import pytest
import torch
import yaml
from faults import logged, same
from helpers import ROOT, SMALL, Crash, composed, with_callback
from PIL import Image
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from unet_diffusion.data import fashion_mnist
from unet_diffusion.errors import UserError
from unet_diffusion.locks import one_alone
from unet_diffusion.runs import Run
from unet_diffusion.training.checkpoints import WholeCheckpoints
from unet_diffusion.training.experiment import go_on, train

SHORT = ("+trainer.limit_train_batches=5", "+trainer.limit_val_batches=2", "+trainer.limit_test_batches=2")
LESSON = (*SMALL, *SHORT, "trainer.log_every_n_steps=3", "trainer.val_check_interval=4", "data.flip=true")
GENERATOR = (
    *LESSON,
    "experiment=06_classes",
    "model=unet",
    "model.channels=[8,16]",
    "sampler=ddim",
    "sampler.steps=2",
    "guidance=0",
)
"""Epochs of five batches, and a validation after each four: none of the two ends with the other."""
ACCUMULATING = (*LESSON, "label_dropout=0.2", "trainer.accumulate_grad_batches=3", "trainer.max_steps=6")
"""Optimizer steps of three and two batches, and a validation after each four."""
BY_EPOCHS = (*LESSON, "trainer.max_steps=-1", "trainer.max_epochs=3")
"""Lightning asks the loader for its length before it gives it its state."""


def crashed(path: Path, after: int, typed: tuple[str, ...], monkeypatch: pytest.MonkeyPatch) -> None:
    """A training that dies after a step."""
    with monkeypatch.context() as patch:
        with_callback(patch, Crash(after))
        with pytest.raises(RuntimeError, match="a crash"):
            train(composed(*typed), path, typed)


def goes_on(run: Path, *typed: str) -> dict[str, float]:
    words = [f"resume={run}", *typed]
    return go_on(composed(*words), words)


def ending(run: Path) -> dict[str, Any]:
    """All that the last checkpoint holds, but for times and places."""
    content: dict[str, Any] = torch.load(run / "checkpoints" / "last.ckpt", weights_only=True)
    states = content.pop("callbacks")
    content["best"] = [state["best_model_score"] for name, state in states.items() if name.startswith("ModelCheckpoint")]
    content["random"] = states["RandomState"]
    return content


Whole = dict[str, tuple[Path, tuple[str, ...]]]


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Whole:
    """Runs of 13 steps that nothing happened to, and what was typed for them."""
    torch.set_num_threads(1)
    runs: Whole = {}
    for name, kind in {"lesson": LESSON, "generator": GENERATOR, "accumulating": ACCUMULATING, "by_epochs": BY_EPOCHS}.items():
        runs[name] = tmp_path_factory.mktemp("runs") / name, ("trainer.max_steps=13", *kind)
        train(composed(*runs[name][1]), *runs[name])
    return runs


@pytest.mark.parametrize(
    ("kind", "after"), [("lesson", 2), ("lesson", 7), ("generator", 8), ("accumulating", 5), ("by_epochs", 7)]
)
def test_a_run_that_died_ends_as_if_it_had_not(
    whole: Whole, kind: str, after: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    path, typed = whole[kind]
    run = tmp_path / "run"
    crashed(run, after, typed, monkeypatch)
    assert (run / "checkpoints" / "last.ckpt").exists() == (after > 4)  # without one it starts again
    scores = goes_on(run)
    assert same(ending(run), ending(path))
    assert logged(run) == logged(path)
    assert scores == pytest.approx(experiment_scores(path), abs=0)


def experiment_scores(path: Path) -> dict[str, float]:
    return json.loads((path / "metrics.json").read_text())["scores"]


def test_tensorboard_shows_one_run(whole: Whole, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    path, typed = whole["lesson"]
    run = tmp_path / "run"
    crashed(run, 11, typed, monkeypatch)
    goes_on(run)
    shown = []
    for folder in (path, run):
        events = EventAccumulator(str(folder)).Reload()
        shown.append([(event.step, event.value) for event in events.Scalars("train/loss")])
    assert shown[0] == shown[1]
    assert [step for step, _ in shown[0]][:4] == [2, 5, 8, 11]


def test_a_finished_run_goes_on_further_when_asked(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    run = tmp_path / "run"
    typed = (*LESSON, "trainer.max_steps=4", "lr_schedule=constant")
    train(composed(*typed), run, typed)
    before = ending(run)
    seconds = json.loads((run / "metrics.json").read_text())["seconds"]
    assert goes_on(run) == experiment_scores(run)
    assert "is finished, with 4 steps" in capsys.readouterr().out
    assert same(ending(run), before)
    shutil.move(run, tmp_path / "moved")
    moved = tmp_path / "moved"
    goes_on(moved, "trainer.max_steps=9")
    longer = (*LESSON, "trainer.max_steps=9", "lr_schedule=constant")
    train(composed(*longer), tmp_path / "longer", longer)
    assert same(ending(moved)["state_dict"], ending(tmp_path / "longer")["state_dict"])
    assert (moved / "metrics-4.json").exists()
    assert json.loads((moved / "metrics.json").read_text())["seconds"] >= seconds
    assert experiment_scores(moved) == experiment_scores(tmp_path / "longer")
    assert not run.exists()  # nothing was written to where it had been


def signalled(number: signal.Signals, *typed: str, cwd: Path) -> tuple["subprocess.Popen[str]", str, str]:
    """A training that is sent a signal when it has written its first checkpoint, and what it said."""
    environment = os.environ | {"OMP_NUM_THREADS": "1", "OMP_WAIT_POLICY": "PASSIVE"}
    command = [sys.executable, str(ROOT / "scripts" / "train.py"), *typed]
    process = subprocess.Popen(command, cwd=cwd, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    while process.poll() is None and not list(cwd.rglob("last.ckpt")):
        time.sleep(0.02)
    process.send_signal(number)
    return process, *process.communicate(timeout=120)


@pytest.mark.parametrize(("number", "kind"), [(signal.SIGTERM, "lesson"), (signal.SIGINT, "generator")])
def test_a_signal_ends_a_run_in_order(number: signal.Signals, kind: str, whole: Whole, tmp_path: Path):
    path, typed = whole[kind]
    process, out, err = signalled(number, *typed, "name=cut", cwd=tmp_path)
    (run,) = (tmp_path / "runs" / "cut").iterdir()
    if process.returncode == 0:
        pytest.skip("it was through before the signal came")
    assert process.returncode == 128 + number, err
    assert "Traceback" not in err
    step = ending(run)["global_step"]
    assert f"Ended after step {step}" in out
    assert f"resume=runs/cut/{run.name}" in out
    goes_on(run)
    assert same(ending(run), ending(path))
    assert logged(run) == logged(path)


def test_the_same_command_goes_on_in_its_run_dir(whole: Whole, tmp_path: Path, script: Callable[..., tuple[int, str, str]]):
    """As a job does that a cluster has warned, stopped and put into its queue again."""
    path, typed = whole["lesson"]
    process, out, err = signalled(signal.SIGUSR1, *typed, "run_dir=mine", cwd=tmp_path)
    if process.returncode == 0:
        pytest.skip("it was through before the signal came")
    assert process.returncode == 128 + signal.SIGUSR1, err
    assert "resume=mine" in out
    status, out, err = script("train", *typed, "run_dir=mine")
    assert status == 0, err
    assert "Going on with mine after step" in out
    assert same(ending(tmp_path / "mine"), ending(path))
    assert logged(tmp_path / "mine") == logged(path)
    status, out, _ = script("train", "run_dir=mine", *typed)
    assert "is finished" in out
    status, _, err = script("train", *typed, "run_dir=mine", "seed=3")
    assert status == 2
    assert "run_dir=mine holds a run of other words" in err


def test_a_run_dir_that_cannot_be_is_refused(tmp_path: Path, script: Callable[..., tuple[int, str, str]]):
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos" / "me.png").touch()
    (tmp_path / "begun").mkdir()
    (tmp_path / "begun" / "overrides.yaml").write_text("- seed")  # of a run that was killed at once
    for typed, said in {
        ("run_dir=photos",): "run_dir=photos is there already and is no run",
        ("run_dir=photos/me.png",): "run_dir=photos/me.png is there already and is no run",
        ("run_dir=a", "resume=b"): "run_dir=a does not go with resume=b",
        ("-m", "run_dir=a", "seed=0,1"): "sweep_dir=",
    }.items():
        status, _, err = script("train", *SMALL, *typed)
        assert status == 2
        assert said in err
    assert {entry.name for entry in tmp_path.iterdir()} >= {"photos", "begun"}
    assert (tmp_path / "photos" / "me.png").exists()
    status, _, err = script("train", *LESSON, "trainer.max_steps=1", "run_dir=begun")
    assert status == 0, err
    assert (tmp_path / "begun" / "metrics.json").exists()


def test_a_gradient_that_is_not_finite_ends_the_run_before_it_spoils_the_weights(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    run = tmp_path / "run"
    typed = (*LESSON, "trainer.max_steps=20", "optimizer=adam", "optimizer.lr=1e30", "lr_schedule=one_cycle", "noise=uniform")
    with pytest.raises(
        UserError, match=r"not finite in step \d+ \(loss .*, noise levels 0\.\d\d to \d\.\d\d, learning rate"
    ) as raised:
        train(composed(*typed), run, typed)
    assert "trainer.gradient_clip_val=1" in str(raised.value)
    if (run / "checkpoints" / "last.ckpt").exists():
        assert all(torch.isfinite(value).all() for value in ending(run)["state_dict"].values())
        assert f"resume={os.path.relpath(run)}" in str(raised.value)


@pytest.mark.parametrize(
    ("typed", "said"),
    [
        ("model.channels=[8,16]", r"goes on with model.channels=\[8, 16, 32\], not with model.channels=\[8,16\]"),
        ("model=unet", "goes on with model=.*LessonUNet.*, not with model=unet"),
        ("seed=3", "goes on with seed=0, not with seed=3"),
        ("noise.percent=0.3", "goes on with noise.percent=0.5, not with noise.percent=0.3"),
        ("trainer.fast_dev_run=true", "does not go with trainer.fast_dev_run"),
    ],
)
def test_what_decides_a_run_cannot_change(short_run: Path, typed: str, said: str):
    with pytest.raises(UserError, match=said):
        goes_on(short_run, typed)


@pytest.mark.parametrize("named", ["x/..", "../../other", "notes.txt"])
def test_a_strangers_checkpoint_removes_nothing(named: str, short_run: Path, tmp_path: Path):
    """Lightning's ModelCheckpoint removes what it is told was the best, when there is a better one."""
    run = tmp_path / "run"
    shutil.copytree(short_run, run)
    (run / "notes.txt").touch()
    place = run / "checkpoints" / "last.ckpt"
    content = torch.load(place, weights_only=True)
    (state,) = (each for name, each in content["callbacks"].items() if name.startswith("ModelCheckpoint"))
    worse = torch.tensor(99.0)
    state |= {"best_k_models": {named: worse}, "kth_best_model_path": named, "kth_value": worse, "best_model_score": worse}
    torch.save(content, place)
    before = {path for path in run.rglob("*") if path.name != "metrics.json"}
    goes_on(run, "trainer.max_steps=40")
    assert before <= set(run.rglob("*"))


def test_a_strangers_config_writes_nowhere_else(short_run: Path, tmp_path: Path):
    run = tmp_path / "run"
    shutil.copytree(short_run, run)
    content = yaml.safe_load((run / "config.yaml").read_text())
    for group, part, key, value in (
        ("callbacks", "checkpoint", "dirpath", "victim/checkpoints"),
        ("callbacks", "checkpoint", "filename", "../../victim/best"),
        ("logger", "csv", "name", "../victim"),
        ("logger", "csv", "version", str(tmp_path / "victim")),
    ):
        changed = copy.deepcopy(content)
        changed[group][part][key] = value
        (run / "config.yaml").write_text(yaml.safe_dump(changed))
        with pytest.raises(UserError, match=rf"{group}.{part}.{key}=.* may lead out of the run's folder"):
            goes_on(run, "trainer.max_steps=40")
    assert not (tmp_path / "victim").exists()


def test_the_same_words_go_on_whatever_they_have_become(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """A relative path is absolute in the run's config, and a reference is what it refers to."""
    mini = Path(fashion_mnist.__file__).with_name("fashion_mnist_mini.npz")
    images = np.load(mini)["train_images"][:400]
    (tmp_path / "photos").mkdir()
    for number, image in enumerate(images):
        Image.fromarray(image).save(tmp_path / "photos" / f"{number}.png")
    monkeypatch.chdir(tmp_path)
    typed = (*LESSON, "data=image_folder", "data.root=photos", "model=unet", "model.channels=[8]", "trainer.max_steps=9")
    typed = (*typed, "model.num_classes=${num_classes}")
    train(composed(*typed), Path("whole"), typed)
    crashed(Path("run"), 7, typed, monkeypatch)
    goes_on(Path("run"), *typed)
    assert same(ending(Path("run")), ending(Path("whole")))


def test_a_signal_is_obeyed_where_every_step_ends_an_epoch(tmp_path: Path):
    typed = (*LESSON, "++trainer.limit_train_batches=2", "trainer.accumulate_grad_batches=2", "trainer.max_steps=20")

    class Warned(L.Callback):
        def on_train_batch_start(self, trainer: L.Trainer, pl_module: L.LightningModule, batch: Any, batch_idx: int) -> None:
            if (trainer.global_step, batch_idx) == (5, 0):  # a second one would end it at once
                signal.raise_signal(signal.SIGTERM)

    with pytest.MonkeyPatch.context() as patch:
        with_callback(patch, Warned())
        with pytest.raises(SystemExit) as ended:
            train(composed(*typed), tmp_path / "run", typed)
    assert ended.value.code == 128 + signal.SIGTERM
    train(composed(*typed), tmp_path / "whole", typed)
    goes_on(tmp_path / "run")
    assert same(ending(tmp_path / "run"), ending(tmp_path / "whole"))


def test_a_run_with_another_end_follows_its_schedule_from_its_first_step(tmp_path: Path):
    run = tmp_path / "run"
    typed = (*LESSON, "trainer.max_steps=4", "lr_schedule=linear", "optimizer.lr=0.01", "trainer.log_every_n_steps=1")
    train(composed(*typed), run, typed)
    goes_on(run, "trainer.max_steps=8")
    with (run / "metrics.csv").open() as stream:
        rates = {row["step"]: row["train/learning_rate"] for row in csv.DictReader(stream) if row["train/learning_rate"]}
    assert float(rates["4"]) == pytest.approx(0.01 * (1 - 4 / 8) / (1 - 0.03))


@pytest.mark.parametrize("content", ["[", "[]", '{"scores": 3}', "{}"])
def test_damaged_scores_of_a_finished_run_are_none(content: str, short_run: Path, tmp_path: Path):
    run = tmp_path / "run"
    shutil.copytree(short_run, run)
    (run / "metrics.json").write_text(content)
    assert goes_on(run) == {}


def test_no_run_is_trained_twice_at_once(short_run: Path, tmp_path: Path):
    run = tmp_path / "run"
    shutil.copytree(short_run, run)
    before = {path: path.stat().st_mtime_ns for path in run.rglob("*")}
    with one_alone(run), pytest.raises(UserError, match="is being trained by another process"):
        goes_on(run, "trainer.max_steps=40")
    assert {path: path.stat().st_mtime_ns for path in run.rglob("*")} == before


def test_another_logger_takes_the_place_of_the_one_before(short_run: Path, tmp_path: Path):
    run = tmp_path / "run"
    shutil.copytree(short_run, run)
    before = set(run.glob("events*"))
    goes_on(run, "trainer.max_steps=40", "logger=csv")
    assert set(run.glob("events*")) == before
    assert list(Run.open(run).config.logger) == ["csv"]


def test_only_known_classes_are_built(short_run: Path, tmp_path: Path):
    run = tmp_path / "run"
    shutil.copytree(short_run, run)
    (run / "metrics.json").unlink()
    config = (run / "config.yaml").read_text()
    for place, foreign in (("lightning.pytorch.callbacks.ModelSummary", "os.system"), ("torch.optim.AdamW", "torch.hub.load")):
        assert place in config
        (run / "config.yaml").write_text(config.replace(place, foreign))
        with pytest.raises(UserError, match=f"{foreign}, which is not a class"):
            goes_on(run, "trainer.max_steps=20")


def test_a_damaged_checkpoint_is_said_and_the_other_goes_on(short_run: Path, tmp_path: Path):
    run = tmp_path / "run"
    shutil.copytree(short_run, run)
    last = run / "checkpoints" / "last.ckpt"
    last.write_bytes(last.read_bytes()[:5000])
    with pytest.raises(UserError, match=r"last\.ckpt is damaged"):
        goes_on(run, "trainer.max_steps=14")
    goes_on(run / "checkpoints" / "best.ckpt", "trainer.max_steps=14")
    assert ending(run)["global_step"] == 14


LIMITED = """
import resource, signal, sys
from collections.abc import Callable
from pathlib import Path
import torch
from unet_diffusion.errors import UserError
from unet_diffusion.training.checkpoints import WholeCheckpoints
place = Path(sys.argv[1])
WholeCheckpoints().save_checkpoint({"state_dict": {"w": torch.ones(10)}}, place)
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))
try:
    WholeCheckpoints().save_checkpoint({"state_dict": {"w": torch.zeros(1_000_000)}}, place)
except UserError as error:
    print(error)
"""


def test_a_checkpoint_that_does_not_fit_leaves_the_one_before(tmp_path: Path):
    place = tmp_path / "checkpoints" / "last.ckpt"
    done = subprocess.run([sys.executable, "-c", LIMITED, str(place)], capture_output=True, text=True, timeout=120)
    assert done.stdout == f"the checkpoint {place} cannot be written: the file would be too large\n", done.stderr
    assert torch.equal(WholeCheckpoints().load_checkpoint(place)["state_dict"]["w"], torch.ones(10))
    assert [path.name for path in place.parent.iterdir()] == ["last.ckpt"]


@pytest.mark.slow
def test_a_run_killed_while_it_writes_ends_as_if_nothing_had_been(tmp_path: Path):
    command = [sys.executable, str(ROOT / "tests" / "faults.py"), "writing", "--times", "1", "--folder", str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stdout + done.stderr
