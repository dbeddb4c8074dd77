"""Bad input: one sentence on stderr, status 2, no traceback, no run folder."""

import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from PIL import Image

Script = Callable[..., tuple[int, str, str]]
NO_GPU = not torch.cuda.is_available() and not torch.backends.mps.is_available()

BAD_TRAINING = [
    (["noise.pecent=0.3"], "there is no key noise.pecent; did you mean noise.percent"),
    (["foo=1"], "there is no key foo"),
    (["data.batchsize=3"], "did you mean data.batch_size"),
    (["model=leson"], "model=leson is not there: choose one of lesson, lesson_narrow, lesson_wide, unet; did you mean lesson"),
    (["modell=lesson"], "there is no key modell; did you mean model"),
    (["experiment=99"], "experiment=99 is not there: choose one of 01_lesson"),
    (["noise.percent=30"], "noise.percent=30 must be between 0 and 1: a fraction is meant, try noise.percent=0.3"),
    (["noise.percent=-0.1"], "noise.percent=-0.1 must be between 0 and 1"),
    (["noise.percent=abc"], "noise.percent=abc must be a number"),
    (["noise.percent=[0.1"], "cannot be read as key=value"),
    (
        ["data.image_size=18"],
        "data.image_size=18 cannot be halved 2 times: 2**2 = 4 must divide it; the nearest sizes that fit: 16 or 20",
    ),
    (["data.image_size=0"], "data.image_size=0 must be"),
    (["data.image_size=-4"], "data.image_size=-4 must be"),
    (["data.image_size=abc"], "data.image_size=abc must be"),
    (["model.image_size=32"], "does not take the data's 1x16x16 images"),
    (["model.channels=[]"], "model.channels=[] must list two or more widths"),
    (["model.channels=[16]"], "model.channels=[16] must list two or more widths"),
    (["+model.depth=3"], "it takes channels, image_channels, image_size, dense_bottleneck"),
    (["data.batch_size=5000"], "data.batch_size=5000 is larger than the 4500 training images"),
    (["data.batch_size=0"], "data.batch_size=0 must be a whole number of 1 or more"),
    (["data=image_folder"], "name it by data.root="),
    (["data=image_folder", "data.root=empty"], "holds no images"),
    (["data=image_folder", "data.root=broken"], "01.png"),
    (["data=image_folder", "data.root=gone"], "gone is not a folder"),
    (["output_dir=file/x"], "name another output_dir"),
    (["optimizer.lr=-1"], "optimizer.lr=-1 is refused"),
    (["trainer.max_steps=abc"], "trainer.max_steps=abc must be a whole number"),
    (["+trainer.foo=1"], "trainer.foo=1 is refused"),
    (["trainer.max_time=soon"], "trainer.max_time=soon must be DD:HH:MM:SS"),
    (["trainer.max_steps=0"], "trainer.max_steps=0 would train nothing"),
    (["trainer.max_steps=-1"], "no limit at all"),
    (["trainer.max_time=60"], "trainer.max_time=60 must be DD:HH:MM:SS"),
    (["trainer.val_check_interval=0"], "trainer.val_check_interval=0 must be"),
    (["noise_seed=abc"], "noise_seed=abc must be"),
    (["sampler=from_run"], "sampler describes a dict, where a Sampler belongs: choose another sampler=..."),
    (["sampler=heun", "sampler.steps=0"], "sampler.steps=0 must be a whole number of 1 or more"),
    (["prediction=noise"], "prediction=noise needs a schedule that leaves a trace of the image at t = 1"),
    (
        ["schedule=ddpm", "schedule.zero_terminal=true", "prediction=noise"],
        "schedule.zero_terminal=false",
    ),
    (["guidance=1"], "guidance=1 needs a network that knows classes"),
    (["experiment=06_classes", "label_dropout=0"], "guidance=0.5 needs the null class"),
    (["model=unet", "model.num_classes=5"], "model.num_classes=5 is less than the data's 10"),
    (["model=unet", "model.dropout=abc"], "model.dropout=abc must be a number"),
    (["optimizer=muon", "optimizer.betas=[0.9]"], "must be two numbers"),
    (["label_dropout=20"], "try label_dropout=0.2"),
    (["averaging=ema", "averaging.decay=1"], "averaging.decay=1 would never learn"),
    (["optimizer=muon", "optimizer.lr=0"], "optimizer.lr=0 is refused"),
    (["callbacks.pictures.num_images=0"], "callbacks.pictures.num_images=0 must be"),
    (["name=../x"], "name=../x must be made of at most 100 letters"),
    (["callbacks.checkpoint.save_top_k=3"], "callbacks.checkpoint.save_top_k=3 would keep all in one file"),
    (["callbacks.progress_bar.refresh_rate=often"], "callbacks.progress_bar.refresh_rate=often must be a whole number"),
    (["optimizer.weight_decay=inf"], "optimizer.weight_decay=inf must be a number"),
    (["speed=5"], "speed=5 takes the place of all its keys"),
    (["trainer=null"], "trainer=None takes the place of all its keys"),
    (["trainer.fast_dev_run=0.3"], "trainer.fast_dev_run=0.3 must be a whole number"),
    (["callbacks.checkpoint.monitor=val/los"], "callbacks.checkpoint.monitor=val/los is not logged: choose one of val/loss"),
    (["cache_dir="], "cache_dir"),
    (["data.val_fraction=0.9999"], "leave none to train on"),
    (["-m", "accelerator=ddp", "seed=0,1"], "accelerator=ddp does not go with -m"),
    (["output_dir=file/x", "-m", "seed=0,1"], "name another output_dir"),
    (["seed=-1"], "seed=-1 must be a whole number of 0 or more"),
    (["lr_schedule.warmup=30"], "try lr_schedule.warmup=0.3"),
    (["-m", "noise.pecent=0.1,0.3"], "there is no key noise.pecent"),
    (["-m", "noise.percent=10,30"], "job 1 (noise.percent=30): noise.percent=30 must be"),
]
BAD_HARDWARE = [
    (["accelerator=gpu"], "accelerator=gpu was asked for, but torch finds none here: try accelerator=auto or accelerator=cpu"),
    (["precision=fp16"], "precision=fp16 needs a GPU"),
]


def refused(answer: tuple[int, str, str], said: str) -> None:
    status, _, err = answer
    assert status == 2
    assert said in err
    assert "Traceback" not in err
    assert all(line.startswith("error: ") for line in err.splitlines()), err


@pytest.fixture
def workplace(tmp_path: Path) -> Path:
    (tmp_path / "empty").mkdir()
    (tmp_path / "file").write_text("in the way")
    (tmp_path / "broken").mkdir()
    Image.new("L", (20, 20)).save(tmp_path / "broken" / "00.png")
    (tmp_path / "broken" / "01.png").write_text("hello")
    return tmp_path


@pytest.mark.parametrize(
    ("arguments", "said"),
    BAD_TRAINING + (BAD_HARDWARE if NO_GPU else []),
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_a_training_that_cannot_be_is_refused(script: Script, workplace: Path, arguments: list[str], said: str):
    before = sorted(workplace.rglob("*"))
    refused(script("train", *arguments), said)
    left = [path for path in sorted(workplace.rglob("*")) if path not in before and path.is_file()]
    assert left == []
    assert not list(workplace.glob("runs/*/*"))


def test_debug_shows_the_traceback(script: Script):
    status, _, err = script("train", "noise.percent=30", "debug=true")
    assert status == 2
    assert "Traceback" in err
    assert "a fraction is meant" in err


def test_a_sweep_goes_on_after_a_bad_job(script: Script, tmp_path: Path):
    small = (
        "model=lesson_narrow",
        "trainer.max_steps=2",
        "callbacks.progress_bar.refresh_rate=0",
        "callbacks.model_summary.max_depth=0",
    )
    answer = script("train", "-m", "noise.percent=30,0.3", *small)
    refused(answer, "job 0 (noise.percent=30): noise.percent=30")
    (done,) = tmp_path.glob("runs/lesson/*-sweep/*/metrics.json")
    assert done.parent.name.startswith("001-noise.percent-0.3")


BAD_RUNS = [
    ([], "run= is needed"),
    (["run=gone"], "run=gone does not exist"),
    (["run=empty"], "run=empty is no run"),
    (["run=run", "checkpoint=first"], "has no checkpoint first: it has best, last"),
    (["run=run", "batch_size=0"], "batch_size=0 must be"),
    (["run=run", "device=null"], "device=None cannot be used here"),
    (["run=run", "device=toaster"], "device=toaster cannot be used here"),
    (["run=run", "nothing=1"], "there is no key nothing"),
]
BAD_SAMPLES = [
    (["run=run", "num_images=0"], "num_images=0 must be"),
    (["run=run", "seed=-1"], "seed=-1 must be"),
    (["run=run", "sampler=heun3"], "sampler=heun3 is not there"),
    (["run=run", "sampler.noise_scale=-1"], "sampler.noise_scale=-1 must be 0 or more"),
    (["run=run", "sampler.noise=1"], "it takes noise_scale"),
    (["run=run", "output=file/x"], "output=file/x cannot be written"),
]
BAD_EVALUATIONS = [
    (["run=run", "levels=[0.1,50]"], "levels=50 must be between 0 and 1"),
    (["run=run", "levels=5"], "levels=5 must be a list of fractions"),
    (["run=run", "num_images=20"], "num_images=20 is too few for a distance"),
    (["run=run", "num_images=5000"], "num_images=5000 is more than the 4500 training images"),
    (["run=run", "label=3"], "knows no classes"),
    (["run=run", "noise_seed=x"], "noise_seed=x must be"),
]


@pytest.mark.parametrize(
    ("name", "arguments", "said"),
    [
        *(("sample", *case) for case in BAD_RUNS + BAD_SAMPLES),
        *(("evaluate", *case) for case in BAD_RUNS + BAD_EVALUATIONS),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_a_run_that_cannot_be_used_is_refused(
    script: Script, workplace: Path, short_run: Path, name: str, arguments: list[str], said: str
):
    os.symlink(short_run, workplace / "run")
    before = sorted(short_run.rglob("*"))
    refused(script(name, *arguments), said)
    assert sorted(short_run.rglob("*")) == before


def test_a_truncated_checkpoint_is_refused(script: Script, tmp_path: Path, short_run: Path):
    copy = Path(shutil.copytree(short_run, tmp_path / "copy"))
    path = copy / "checkpoints" / "best.ckpt"
    path.write_bytes(path.read_bytes()[:5000])
    for name in ("sample", "evaluate"):
        refused(script(name, f"run={path}"), "best.ckpt is damaged")
