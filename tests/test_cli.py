"""Invalid input: one line on stderr, exit status 2, no traceback, no files."""

import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from unittest.mock import Mock

import pytest
import torch
from helpers import ROOT, Malicious, Script
from PIL import Image

from unet_diffusion.errors import UserError
from unet_diffusion.experiment.explain import explain
from unet_diffusion.runs.checkpoints import load_checkpoint

NO_GPU = not torch.cuda.is_available() and not torch.backends.mps.is_available()

TRAINING = {
    "noise.pecent=0.3": "noise.pecent: no such key. Did you mean noise.percent",
    "model=leson": "model=leson: expected one of lesson, lesson_wide, unet. Did you mean lesson",
    "experiment=99": "experiment=99: expected one of 01_lesson, ",
    "noise=0.3": "noise=0.3: for the noise level, use noise.percent=0.3",
    "noise.percent=0,3": "noise.percent=0,3: several values. Use a point in a number (0.3)",
    "model.channels=16,32": "brackets for a list ([16,32])",
    "sampler.eta=1": "sampler.eta: no such key. It is a key of sampler=ancestral, ddim",
    "+model.depth=3": "model.depth: unknown key. LessonUNet has channels, ",
    "+trainer.limit_test_batches=0": "trainer.limit_test_batches=0: should be greater than 0",
    "noise.percent": "noise.percent: not key=value",
    "data=image_folder data.root=empty": "/empty: no images found",
    "data=image_folder data.root=broken": "/broken/01.png: cannot identify image file",
    "data=image_folder data.root=gone": "/gone: not a folder",
    "output_dir=file/x": "Not a directory",
    "model=unet model.num_classes=5": "model.num_classes=5: at least 10, as in the data",
    "data=null": "data=null: expected one of cifar10",
    "model.image_channels=3": "model: does not accept images (2, 1, 16, 16)",
    "data.batch_size=1 data.image_size=4": "data.batch_size=1: Expected more than 1 value",
    "+trainer.foo=1": "unexpected keyword argument 'foo'",
    "experiment=04_flow sampler=average_velocity": "requires model=unet model.interval_embedding=",
    "experiment=07_one_step model.num_classes=0": "objective.guidance_scale=2: the network",
    "experiment=08_one_step_classes label_dropout=0": "the null class is not trained",
    "data.image_size=18": "data.image_size=18: the network with 3 widths downsamples by 4",
    "callbacks.checkpoint.monitor=val/los": "optimized_metric=val/loss: expected one of val/los",
    "-m ema=null,default": "ema=null: not possible in a sweep (-m) over ema",
    "-m data.image_size=16,18": "data.image_size=18: the network with 3 widths downsamples by 4",
    "sweep=noise_percent noise.percent=0.5,30": "noise.percent=30: expected a value in [0, 1]",
    "-m data=huggingface seed=0,1": "data.source.path: required",
    "--config-dir mine sweep=bad": "noise.percent=30: expected a value in [0, 1]",
    "resume=gone": "resume=gone: no such file or directory",
    "resume=empty": "resume=empty: not a run directory",
    "resume=pretrained": "resume=pretrained: has no checkpoint. Use init_from.",
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
    "run=run sampler=heun sampler.eta=1": "It is a key of sampler=ancestral, ddim",
    "run=run checkpoint=first": "checkpoint=first: not in run",
    "run=run sampler=heun3": "sampler=heun3: expected one of ancestral, average_velocity",
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
def test_invalid_training_is_one_line_without_files(
    script: Script, workplace: Path, arguments: str
) -> None:
    before = sorted(workplace.rglob("*"))
    check_error(script("train", *arguments.split()), (TRAINING | HARDWARE)[arguments])
    assert sorted(workplace.rglob("*")) == before


@pytest.mark.parametrize("arguments", SAMPLING)
def test_invalid_sampling_is_one_line(script: Script, workplace: Path, arguments: str):
    before = sorted((workplace / "run").rglob("*"))
    check_error(script("sample", *arguments.split()), SAMPLING[arguments])
    assert sorted((workplace / "run").rglob("*")) == before


def test_malicious_checkpoint_is_refused(script: Script, workplace: Path, short_run: Path):
    (workplace / "run").unlink()
    copy = Path(shutil.copytree(short_run, workplace / "run"))
    for name in ("best", "last"):
        path = copy / "checkpoints" / f"{name}.ckpt"
        torch.save(load_checkpoint(path) | {"extra": Malicious("executed")}, path)
    check_error(script("sample", "run=run"), "best.ckpt: damaged, truncated")
    resume = ("resume=run", "trainer.max_steps=20")
    check_error(script("train", *resume), "last.ckpt: damaged, truncated")
    assert not (workplace / "executed").exists()


def test_debug_shows_the_traceback(script: Script):
    status, _, errors = script("train", "noise.percent=30", "debug=true")
    assert (status, "Traceback" in errors) == (2, True)
    assert errors.splitlines()[-1].startswith("error: noise.percent=30: ")


def test_help_names_the_main_keys_and_the_commands(script: Script):
    status, output, _ = script("train", "--help")
    assert status == 0
    assert all(word in output for word in ("noise.percent=0.3", "experiment:", "Commands: train"))


def test_missing_module_names_its_extra(monkeypatch: pytest.MonkeyPatch):
    error = ModuleNotFoundError("No module named 'mlflow'", name="mlflow.tracking")
    assert explain(error) == "mlflow.tracking: not installed. Run pip install -e '.[loggers]'."
    monkeypatch.setattr("unet_diffusion.experiment.explain.CONF", Path("/installed/conf"))
    assert explain(error).endswith("Run pip install 'unet-diffusion[loggers]'.")


def test_ctrl_c_during_the_imports_has_no_traceback(tmp_path: Path):
    command = [sys.executable, str(ROOT / "scripts" / "sample.py"), "run=gone"]
    process = subprocess.Popen(command, cwd=tmp_path, stderr=subprocess.PIPE, text=True)
    time.sleep(1.5)
    process.send_signal(signal.SIGINT)
    assert (process.communicate()[1], process.returncode) == ("", -signal.SIGINT)


def test_user_errors_are_one_line_and_bugs_keep_their_traceback(script: Script, monkeypatch):
    build = Mock(side_effect=UserError("key=3: should be\n  2."))
    monkeypatch.setattr("unet_diffusion.commands.train.build", build)
    assert script("train") == (2, "", "error: key=3: should be 2.\n")
    build.side_effect = ValueError("a bug")
    with pytest.raises(ValueError, match="a bug"):  # Python prints it, with exit status 1
        script("train")
