"""conf/: every choice composes and builds, every key is documented."""

import importlib
import inspect
import itertools
import re
from functools import partial
from pathlib import Path
from typing import Any

import lightning as L
import pytest
from helpers import CONF, SMALL, choices, composed
from omegaconf import OmegaConf
from pydantic import BaseModel

from unet_diffusion.cli import COMMANDS
from unet_diffusion.commands.train import train
from unet_diffusion.data.datamodule import ImageDataModule
from unet_diffusion.diffusion import Prediction, Schedule, TimeDistribution
from unet_diffusion.experiment.compose import compose
from unet_diffusion.experiment.parts import construct
from unet_diffusion.models import Network
from unet_diffusion.objectives import Objective
from unet_diffusion.samplers import Sampler
from unet_diffusion.training.ema import EMA
from unet_diffusion.training.lr_schedules import LRSchedule

FILES = sorted(CONF.rglob("*.yaml"))
TYPES = {
    "data": ImageDataModule,
    "model": Network,
    "noise": TimeDistribution,
    "schedule": Schedule,
    "prediction": Prediction,
    "objective": Objective,
    "sampler": Sampler,
    "lr_schedule": LRSchedule,
    "ema": EMA,
    "optimizer": partial,
}
CONSTANTS = ("filename", "mode", "auto_insert_metric_name", "logging_interval")
PARTS = ("model", "noise", "schedule", "prediction", "sampler", "ema", "optimizer")
_UNET = "UNet UniformTime LinearSchedule X0Prediction DDIMSampler none AdamW"
_FLOW = "UNet LogitNormalTime LinearSchedule VelocityPrediction HeunSampler EMA Muon"
EXPERIMENTS = {
    "01_lesson": "LessonUNet FixedTime LinearSchedule X0Prediction DDIMSampler none Adam",
    "02_all_noise_levels": f"Lesson{_UNET}",
    "03_time_conditioned": _UNET,
    "04_flow": _FLOW,
    "05_ddpm": "UNet UniformTime DDPMSchedule EpsilonPrediction HeunSampler EMA Muon",
    "06_class_conditional": _FLOW.replace("Heun", "DPMSolver"),
    "07_one_step": _FLOW.replace("Heun", "AverageVelocity"),
    "08_one_step_classes": _FLOW.replace("Heun", "AverageVelocity"),
    "09_photo_denoiser": _FLOW.replace("LogitNormal", "Uniform").replace("Heun", "DDIM"),
    "cifar10_flow": _FLOW,
    "colour_flow": _FLOW,
}


def test_every_choice_builds_its_type():
    names = {group: [each for each in choices(group) if each != "base"] for group in TYPES}
    for number in range(max(map(len, names.values()))):  # one choice of every group at once
        chosen = {group: each[number % len(each)] for group, each in names.items()}
        path = ["data.source.path=user/name"] if chosen["data"] == "huggingface" else []
        config = composed(*(f"{group}={choice}" for group, choice in chosen.items()), *path)
        for group, choice in chosen.items():
            assert isinstance(construct(getattr(config, group), group), TYPES[group]), choice


def test_playground_has_the_samplers_of_the_configs():
    from unet_diffusion.commands.playground import SAMPLERS

    parts = {choice: composed(f"sampler={choice}").sampler for choice in choices("sampler")}
    assert {choice: construct(part, "sampler") for choice, part in parts.items()} == SAMPLERS


@pytest.mark.parametrize("choice", choices("accelerator"))
def test_accelerators_compose_arguments_of_the_trainer(choice: str):
    arguments = composed(f"accelerator={choice}", "precision=fp32").trainer.model_dump()
    if choice != "gpu":
        L.Trainer(**arguments, logger=False)
    assert set(arguments) == set(composed().trainer.model_dump())


@pytest.mark.parametrize("choice", choices("experiment"))
def test_every_experiment_trains(choice: str, capsys: pytest.CaptureFixture[str]):
    small = [override for override in SMALL if "lesson" in choice or "channels" not in override]
    if choice in ("09_photo_denoiser", "cifar10_flow", "colour_flow"):
        small += ["data=fashion_mnist_mini", "data.channels=3", "model.channels=[16,32]"]
    config = composed(f"experiment={choice}", *small, "trainer.fast_dev_run=true")
    assert config.name == choice
    targets = [(getattr(config, part) or {"_target_": "none"})["_target_"] for part in PARTS]
    assert " ".join(target.rpartition(".")[2] for target in targets) == EXPERIMENTS[choice]
    train(config)
    assert "training and validation work" in capsys.readouterr().out
    assert len((CONF / "experiment" / f"{choice}.yaml").read_text().splitlines()) <= 20


def test_01_lesson_has_the_settings_of_the_course():
    config = composed("experiment=01_lesson")
    assert {"batch_size": 128, "image_size": 16, "flip": True}.items() <= config.data.items()
    assert (config.noise["percent"], config.optimizer["lr"]) == (0.5, 1e-4)
    assert config.lr_schedule is None
    assert config.trainer.max_steps == 2 * (60_000 // 128)


@pytest.mark.parametrize("file", FILES, ids=lambda file: str(file.relative_to(CONF)))
def test_every_key_has_a_comment(file: Path):
    """At its first occurrence, on its line or above; except `_target_`, references, constants."""
    assert file.read_text().startswith("#"), "no description in the first lines"
    if file.parent.name in ("experiment", "logger"):
        return
    documented = {"_target_", "_partial_", "source", "name", *CONSTANTS}
    body = re.split(r"^hydra:", file.read_text(), flags=re.MULTILINE)[0]
    for above, line in itertools.pairwise(["", *body.splitlines()]):
        match = re.fullmatch(r"\s*([a-z_]+): *([^#\s].*?)? *(#.*)?", line)
        if match and match[2] and not match[2].startswith("${"):
            assert match[3] or above.startswith("#") or match[1] in documented, line
            documented.add(match[1])


def defaults_beside(schema: type[BaseModel], node: Any, prefix: str = "") -> list[str]:
    """Keys of a config for which the schema has a default too, but for none of a removed group."""
    found = []
    for name, field in schema.model_fields.items():
        is_group = (CONF / name).is_dir() and field.default in (None, {})
        if name in node and not field.is_required() and not is_group:
            found.append(prefix + name)
        if inspect.isclass(field.annotation) and issubclass(field.annotation, BaseModel):
            found += defaults_beside(field.annotation, node.get(name, {}), f"{prefix}{name}.")
    return found


@pytest.mark.parametrize("command", COMMANDS)
def test_every_default_is_in_the_configs_alone(command: str):
    schema = importlib.import_module(f"unet_diffusion.commands.{command}").Arguments
    node = OmegaConf.to_container(compose(command, []), resolve=False)
    assert defaults_beside(schema, node) == []
    if command not in ("train", "benchmark"):
        optional = {name for name, field in schema.model_fields.items() if not field.is_required()}
        assert optional <= {"sampler", "data"}
