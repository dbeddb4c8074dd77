"""Invalid input: one line on stderr, exit status 2, no traceback, no files."""

import os
import pickle
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from unittest.mock import Mock

import pytest
import torch
from helpers import ROOT, Script
from PIL import Image

from unet_diffusion.errors import UserError
from unet_diffusion.runs.checkpoints import load_checkpoint

NO_GPU = not torch.cuda.is_available() and not torch.backends.mps.is_available()

TRAINING = {
    "noise.pecent=0.3": "noise.pecent: no such key. Did you mean noise.percent",
    "foo=1": "foo: no such key",
    "modell=lesson": "modell: no such key. Did you mean model",
    "model=leson": "model=leson: expected one of lesson, lesson_wide, unet. Did you mean lesson",
    "experiment=99": "experiment=99: expected one of 01_lesson, ",
    "noise=0.3": "noise=0.3: for the noise level, use noise.percent=0.3",
    "noise.percent=0,3": "noise.percent=0,3: several values. Use a point in a number (0.3)",
    "model.channels=16,32": "brackets for a list ([16,32])",
    "sampler.eta=1": "sampler.eta: no such key. It is a key of sampler=ancestral, ddim",
    "+model.depth=3": "model.depth: unknown key. LessonUNet has channels, ",
    "trainer.precision=64-true": "trainer.precision=64-true: should be 'auto', '32-true'",
    "+trainer.limit_test_batches=0": "trainer.limit_test_batches=0: should be greater than 0",
    "optimizer.betas=[0.9]": "optimizer.betas=[0.9]: should have at least 2 items",
    "noise.percent=[0.1": "noise.percent=[0.1: not key=value",
    "noise.percent": "noise.percent: not key=value",
    "noise.percent=30": "noise.percent=30: expected a value in [0, 1]. Did you mean 0.3?",
    "data=image_folder data.root=empty": "/empty: no images found",
    "data=image_folder data.root=broken": "/broken/01.png: cannot identify image file",
    "data=image_folder data.root=gone": "/gone: not a folder",
    "output_dir=file/x": "Not a directory",
    "model=unet model.num_classes=5": "model.num_classes=5: at least 10, as in the data",
    "experiment=06_class_conditional label_dropout=0": "not trained with label_dropout=0",
    "model.image_channels=3": "model: does not accept images (1, 1, 16, 16)",
    "optimizer.lr=-1": "optimizer.lr=-1: should be greater than 0",
    "+trainer.foo=1": "unexpected keyword argument 'foo'",
    "sampler=heun sampler.steps=0": "sampler.steps=0: ",
    "experiment=04_flow sampler=average_velocity": "requires model=unet model.interval_embedding=",
    "data.image_size=18": "data.image_size=18: the network with 3 widths downsamples by 4",
    "callbacks.checkpoint.monitor=val/los": "optimized_metric=val/loss: expected one of val/los",
    "-m ema=null,default": "ema=null: not possible in a sweep (-m) over ema",
    "-m data.image_size=16,18": "data.image_size=18: the network with 3 widths downsamples by 4",
    "sweep=noise_percent optimizer.lr=-1": "optimizer.lr=-1: should be greater than 0",
    "sweep=noise_percent +optimizer.x=1": "optimizer.x: unknown key. AdamW has ",
    "sweep=noise_percent noise.percent=0.5,30": "noise.percent=30: expected a value in [0, 1]",
    "-m data=huggingface seed=0,1": "data.source.path: required",
    "resume=run optimized_metric=foo": "optimized_metric=foo",
    "--config-dir mine sweep=bad": "noise.percent=30: expected a value in [0, 1]",
    "resume=gone": "resume=gone: no such file or directory",
    "resume=empty": "resume=empty: not a run directory",
}
HARDWARE = {
    "accelerator=gpu": "accelerator=gpu: not available here. Use accelerator=auto",
    "precision=fp16": "precision=fp16: requires a GPU",
}
SWEEP = """# @package _global_
hydra: {mode: MULTIRUN, sweeper: {params: {noise.percent: '0.1,30'}}}
"""
SAMPLING = {
    "": "run: required",
    "run=gone": "run=gone: no such file or directory",
    "run=empty": "run=empty: not a run directory",
    "run=.": "run=.: not a run directory (it has no config.yaml). Runs in it: run",
    "run=latest": "run=latest: no runs below runs",
    "run=run sampler.order=2": "sampler.order: unknown key. DDIMSampler has steps, time_grid, clip",
    "run=run sampler=heun sampler.eta=1": "It is a key of sampler=ancestral, ddim",
    "run=run checkpoint=first": "checkpoint=first: not in run",
    "run=run device=toaster": "device=toaster: not available",
    "run=run sampler=heun3": "sampler=heun3: expected one of ancestral, average_velocity",
    "run=run sampler.clip=hard": "sampler.clip=hard: should be 'none', 'static' or 'dynamic'",
    "run=run output=file/x": "Not a directory",
}


def check_error(result: tuple[int, str, str], message: str) -> None:
    status, _, errors = result
    assert status == 2, errors
    assert errors.startswith("error: ")
    assert errors.count("\n") == 1, errors
    assert message in errors


@pytest.fixture
def workplace(tmp_path: Path, short_run: Path) -> Path:
    (tmp_path / "empty").mkdir()
    (tmp_path / "file").write_text("a file")
    (tmp_path / "broken").mkdir()
    Image.new("L", (20, 20)).save(tmp_path / "broken" / "00.png")
    (tmp_path / "broken" / "01.png").write_text("hello")
    os.symlink(short_run, tmp_path / "run")
    (tmp_path / "mine" / "sweep").mkdir(parents=True)
    (tmp_path / "mine" / "sweep" / "bad.yaml").write_text(SWEEP)
    return tmp_path


@pytest.mark.parametrize("arguments", TRAINING | (HARDWARE if NO_GPU else {}))
def test_invalid_training_is_one_line_and_leaves_no_files(
    script: Script, workplace: Path, arguments: str
) -> None:
    before = sorted(workplace.rglob("*"))
    check_error(script("train", *arguments.split()), (TRAINING | HARDWARE)[arguments])
    assert sorted(workplace.rglob("*")) == before


@pytest.mark.parametrize("arguments", SAMPLING)
def test_invalid_sampling_is_one_line(script: Script, workplace: Path, arguments: str) -> None:
    before = sorted((workplace / "run").rglob("*"))
    check_error(script("sample", *arguments.split()), SAMPLING[arguments])
    assert sorted((workplace / "run").rglob("*")) == before


def test_null_removes_a_group(script: Script) -> None:
    removed = ("lr_schedule=null", "ema=null", "data.batch_size=5000")
    # and not an earlier error
    check_error(script("train", *removed), "data.batch_size=5000: the training split has 4500")


class Malicious:
    def __reduce__(self) -> tuple[Callable[..., object], tuple[object, ...]]:
        return os.mkdir, ("executed",)


def test_damaged_and_malicious_checkpoints_are_refused(
    script: Script, workplace: Path, short_run: Path
) -> None:
    (workplace / "run").unlink()
    copy = Path(shutil.copytree(short_run, workplace / "run"))
    best, last = (copy / "checkpoints" / f"{name}.ckpt" for name in ("best", "last"))
    content = load_checkpoint(last)
    best.write_bytes(best.read_bytes()[:5000])
    torch.save(content | {"extra": Malicious()}, last)
    check_error(script("sample", "run=run"), "best.ckpt: damaged, truncated")
    check_error(script("sample", "run=run", "checkpoint=last"), "last.ckpt: damaged, truncated")
    check_error(
        script("train", "resume=run", "trainer.max_steps=20"), "last.ckpt: damaged, truncated"
    )
    best.write_bytes(pickle.dumps(Malicious()))
    check_error(script("sample", "run=run"), "best.ckpt: ")
    assert not (workplace / "executed").exists()


def test_debug_shows_the_traceback(script: Script) -> None:
    status, _, errors = script("train", "noise.percent=30", "debug=true")
    assert (status, "Traceback" in errors) == (2, True)
    assert errors.splitlines()[-1].startswith("error: noise.percent=30: ")


def test_help_names_the_main_keys_and_the_commands(script: Script) -> None:
    status, output, _ = script("train", "--help")
    assert status == 0
    assert all(word in output for word in ("noise.percent=0.3", "experiment:", "Commands: train"))


def test_ctrl_c_during_the_imports_has_no_traceback(tmp_path: Path) -> None:
    command = [sys.executable, str(ROOT / "scripts" / "sample.py"), "run=gone"]
    process = subprocess.Popen(command, cwd=tmp_path, stderr=subprocess.PIPE, text=True)
    time.sleep(1.5)
    process.send_signal(signal.SIGINT)
    assert (process.communicate()[1], process.returncode) == ("", -signal.SIGINT)


@pytest.mark.parametrize("error", [TypeError("a bug"), ValueError("a bug")], ids=repr)
def test_bugs_keep_their_traceback(
    script: Script, monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    monkeypatch.setattr("unet_diffusion.commands.train.build", Mock(side_effect=error))
    with pytest.raises(type(error), match="a bug"):  # Python prints it, with exit status 1
        script("train")


def test_user_errors_are_one_line(script: Script, monkeypatch: pytest.MonkeyPatch) -> None:
    error = UserError("key=3: should be\n  2.")
    monkeypatch.setattr("unet_diffusion.commands.train.build", Mock(side_effect=error))
    assert script("train") == (2, "", "error: key=3: should be 2.\n")
