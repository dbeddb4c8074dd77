"""Two real processes on the CPU, started by Lightning and by torchrun."""

import json
import os
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from faults import differences
from helpers import ROOT, SMALL, Script, denoising_scores, logged, run_script, scores
from lightning.pytorch.callbacks import Callback

from unet_diffusion.runs.run import Run

SCRIPT = """
import os
import pytest
from helpers import with_callback
from training.test_distributed import Record
from unet_diffusion.cli import run_script
with_callback(pytest.MonkeyPatch(), Record())
if "CRASH" in os.environ:
    with pytest.raises(RuntimeError, match="crash"):
        run_script("train")
    del os.environ["CRASH"]
run_script("train")
"""
RUN = (
    *(*SMALL, "experiment=07_one_step", "model.channels=[8,16]", "objective.start=0.25"),
    *("accelerator=ddp", "trainer.accelerator=cpu", "ema=default", "logger=csv"),
    *("trainer.max_time=null", "trainer.max_steps=4"),
    *("trainer.val_check_interval=2", "trainer.log_every_n_steps=1"),
    *("data.val_fraction=0.0202", "data.batch_size=1224"),  # 101 images to validate, 4,899 to train
)
"""Two epochs of two steps; neither split is divisible by two processes."""


class Record(Callback):
    """Compares the weights of the processes after every step, and records the images they saw.

    With the environment variable CRASH, it raises after the third step.
    """

    def __init__(self) -> None:
        self.steps: list[dict[str, Any]] = []

    def on_train_batch_start(self, trainer: Any, *_: Any) -> None:
        if "CRASH" in os.environ and trainer.global_step == 3:
            raise RuntimeError("crash")

    def on_train_batch_end(self, trainer: Any, pl_module: Any, _: Any, batch: Any, __: int) -> None:
        weights = torch.cat([p.detach().flatten() for p in pl_module.parameters()])
        own = (weights, batch.indices.tolist(), torch.rand(1).item())
        everyone: list[Any] = [None] * trainer.world_size
        dist.all_gather_object(everyone, own)
        equal = all(torch.equal(weights, other) for other, _, _ in everyone)
        indices = [index for _, images, _ in everyone for index in images]
        noise = [number for _, _, number in everyone]
        self.steps.append({"equal": equal, "indices": indices, "noise": noise})

    def on_train_end(self, trainer: Any, pl_module: Any) -> None:
        if trainer.is_global_zero:
            path = Path(trainer.default_root_dir, "record.json")
            path.write_text(json.dumps(self.steps))


@pytest.mark.slow
def test_two_processes_train_and_resume_one_run(tmp_path: Path, monkeypatch):
    monkeypatch.setenv("PYTHONPATH", str(ROOT / "tests"))
    script = tmp_path / "train.py"
    script.write_text(SCRIPT)
    run_script(script, *RUN, "run_dir=run", cwd=tmp_path)
    monkeypatch.setenv("CRASH", "")
    output = run_script(script, *RUN, "run_dir=again", cwd=tmp_path, torchrun=2)
    assert output.count("Resuming") == output.count("Test split") == 1
    assert differences(tmp_path / "run", tmp_path / "again") == []
    run = Run.open(tmp_path / "run")
    steps = json.loads((run.path / "record.json").read_text())
    assert [step["equal"] for step in steps] == [True] * 4
    assert all(step["noise"][0] != step["noise"][1] for step in steps)
    epochs = [[i for step in half for i in step["indices"]] for half in (steps[:2], steps[2:])]
    assert epochs[0] != epochs[1]
    for indices in epochs:  # every image at most once; the remainder of an epoch is dropped
        assert len(set(indices)) == len(indices) == 4 * 1224 - 4 * 1224 % 4
    for name, value in denoising_scores(run, "val", "last").items():
        assert logged(run.path, name)[3] == pytest.approx(value, rel=1e-4), name
    for name, value in denoising_scores(run, "test", "best").items():
        assert scores(run.path)[name] == pytest.approx(value, rel=1e-4), name


def test_torchrun_with_other_devices_or_a_sweep_is_refused(
    script: Script, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    launched = {"TORCHELASTIC_RUN_ID": "none", "WORLD_SIZE": "2", "RANK": "0", "LOCAL_RANK": "0"}
    for name, value in launched.items():
        monkeypatch.setenv(name, value)
    three = ("accelerator=ddp", "trainer.accelerator=cpu", "trainer.devices=3")
    for overrides, message in {
        (): "trainer.devices=1: torchrun started 2 processes. Use accelerator=ddp",
        three: "devices=3",
        ("-m", "seed=0,1"): "-m: not available with torchrun",
    }.items():
        status, _, errors = script("train", *SMALL, "run_dir=run", *overrides)
        assert (status, errors.count("\n"), message in errors) == (2, 1, True), errors
    assert not list(tmp_path.iterdir())
