"""Helpers of the tests: small configs, scripts in own processes, checkpoints, callbacks."""

import csv
import functools
import importlib
import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning import Callback, Trainer
from omegaconf import DictConfig, OmegaConf

from unet_diffusion.commands import train as train_command
from unet_diffusion.evaluation.denoising import denoising_metrics
from unet_diffusion.experiment.build import Experiment, build
from unet_diffusion.experiment.compose import compose, read_arguments
from unet_diffusion.experiment.saved import validate_config
from unet_diffusion.experiment.schema import Recorded, TrainConfig
from unet_diffusion.runs.checkpoints import load_checkpoint
from unet_diffusion.runs.run import Run, Weights

Script = Callable[..., tuple[int, str, str]]  # the fixture `script`
Trained = Callable[..., Path]  # the fixture `trained`
ROOT = Path(__file__).parents[1]
CONF = ROOT / "conf"
SMALL = (
    "callbacks.progress_bar.refresh_rate=0",
    "callbacks.model_summary.max_depth=0",
    "data.batch_size=32",
    "precision=fp32",
    "model.channels=[8,16,32]",
)
"""Overrides for a training of a second or two."""
FEW_BATCHES = ("+trainer.limit_val_batches=2", "+trainer.limit_test_batches=2")


@functools.cache
def composed(*overrides: str) -> TrainConfig:
    """conf/train.yaml with these overrides."""
    return read_arguments(compose("train", overrides), TrainConfig)


def call(command: str, **values: Any) -> Any:
    """Calls a command with changed values of its config."""
    module = importlib.import_module(f"unet_diffusion.commands.{command}")
    node = compose(command, [])
    OmegaConf.set_struct(node, False)  # also keys of the run that the command opens
    node = OmegaConf.merge(node, OmegaConf.create(values))
    assert isinstance(node, DictConfig)
    return getattr(module, command)(read_arguments(node, module.Arguments))


def built(*overrides: str, run_dir: Path = Path("unused")) -> Experiment:
    """The experiment of conf/train.yaml with these overrides."""
    return build(composed(*overrides), run_dir, Recorded(), first_step=None)


def choices(group: str) -> list[str]:
    """The choices of a config group."""
    return sorted(file.stem for file in (CONF / group).glob("*.yaml"))


def run_script(
    name: str | Path, *arguments: str, cwd: Path, threads: int = 1, torchrun: int = 0
) -> str:
    """Runs a script in a process of its own, which must succeed.

    Args:
        name: file name in scripts/ without suffix, or a path.
        *arguments: of the command line.
        cwd: working directory.
        threads: of torch.
        torchrun: number of processes that torchrun starts; 0: without torchrun.

    Returns:
        Its standard output.
    """
    launcher = ["-m", "torch.distributed.run", "--standalone", f"--nproc_per_node={torchrun}"]
    script = str(name) if isinstance(name, Path) else str(ROOT / "scripts" / f"{name}.py")
    command = [sys.executable, *(launcher if torchrun else []), script, *arguments]
    environment = os.environ | {"OMP_NUM_THREADS": str(threads), "OMP_WAIT_POLICY": "PASSIVE"}
    done = subprocess.run(
        command, cwd=cwd, env=environment, capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def weights(run: Path, checkpoint: str = "last") -> dict[str, torch.Tensor]:
    """The `state_dict` of a checkpoint."""
    state: dict[str, torch.Tensor] = load_checkpoint(run / "checkpoints" / f"{checkpoint}.ckpt")[
        "state_dict"
    ]
    return state


def logged(run: Path, name: str) -> dict[int, float]:
    """A column of metrics.csv by step; Lightning counts the first step as 0."""
    with (run / "metrics.csv").open(newline="") as stream:
        rows = [row for row in csv.DictReader(stream) if row.get(name)]
    return {int(row["step"]): float(row[name]) for row in rows}


def scores(run: Path) -> dict[str, float]:
    """The final scores."""
    found: dict[str, float] = json.loads((run / "metrics.json").read_text())["scores"]
    return found


def denoising_scores(
    run: Run, split: str, checkpoint: str, weights: Weights = "auto"
) -> dict[str, float]:
    """The metrics of a checkpoint with the noise of validation and test, in one process."""
    config = validate_config(TrainConfig, run.values, run.path / "config.yaml")
    experiment = build(config, run.path, config.recorded, first_step=None)
    images = experiment.datamodule.splits[split]
    batch = images.batch(range(len(images)))
    eps, t = train_command.build_module(experiment).validation_noise(batch)
    denoiser = run.load_denoiser(checkpoint, weights)
    metrics = denoising_metrics(run.config.image_shape[1:], prefix=f"{split}/")
    with torch.inference_mode():
        xt = denoiser.schedule.add_noise(batch.x0, eps, t)
        label = batch.label if split == "val" else None
        metrics.update(denoiser(xt, t, label), batch.x0)
    return {name: float(value) for name, value in metrics.compute().items()}


class Malicious:
    """Creates a directory when it is unpickled."""

    def __init__(self, path: str) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Callable[[str], None], tuple[str]]:
        return os.mkdir, (self.path,)


def with_callback(monkeypatch: pytest.MonkeyPatch, callback: Callback) -> None:
    """Adds a callback to the trainings of this process."""
    build_trainer = train_command.build_trainer

    def build_with_callback(*arguments: Any) -> Trainer:
        trainer = build_trainer(*arguments)
        trainer.callbacks.append(callback)  # type: ignore[attr-defined]
        return trainer

    monkeypatch.setattr(train_command, "build_trainer", build_with_callback)
