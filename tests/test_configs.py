"""conf/: every choice composes and builds, every key is documented, nothing is written twice."""

import itertools
import re
from functools import partial
from pathlib import Path

import lightning as L
import pytest
import torch
from helpers import CONF, SMALL, choices, composed
from omegaconf import OmegaConf
from unet_diffusion.config import instantiate
from unet_diffusion.training.objectives import Objective
from unet_diffusion.training.train import train

from unet_diffusion.data.datamodule import ImageDataModule
from unet_diffusion.diffusion import LossWeighting, Prediction, Schedule, TimeDistribution
from unet_diffusion.samplers import Sampler
from unet_diffusion.training.callbacks import EMA
from unet_diffusion.training.lr_schedules import LRSchedule

FILES = sorted(CONF.rglob("*.yaml"))
TYPES = {
    "data": ImageDataModule,
    "model": torch.nn.Module,
    "noise": TimeDistribution,
    "schedule": Schedule,
    "prediction": Prediction,
    "weighting": LossWeighting,
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
    "01_lesson": "LessonUNet FixedTime LinearSchedule X0Prediction OneStepSampler none Adam",
    "02_all_noise_levels": f"Lesson{_UNET}",
    "03_time_conditioned": _UNET,
    "04_flow": _FLOW,
    "05_ddpm": "UNet UniformTime DDPMSchedule EpsilonPrediction HeunSampler EMA Muon",
    "06_class_conditional": _FLOW.replace("Heun", "DPMSolver"),
    "07_one_step": _FLOW.replace("Heun", "AverageVelocity"),
    "08_one_step_classes": _FLOW.replace("Heun", "AverageVelocity"),
    "cifar10_flow": _FLOW,
    "colour_flow": _FLOW,
}


@pytest.mark.parametrize(
    ("group", "choice"),
    [(group, choice) for group in TYPES for choice in choices(group) if choice != "base"],
)
def test_every_choice_builds_its_type(group: str, choice: str):
    path = ["data.source.path=user/name"] if choice == "huggingface" else []
    assert isinstance(instantiate(composed(f"{group}={choice}", *path), group), TYPES[group])


@pytest.mark.parametrize("choice", choices("accelerator"))
def test_accelerators_compose_arguments_of_the_trainer(choice: str):
    cfg = composed(f"accelerator={choice}", "precision=fp32")
    if choice != "gpu":
        L.Trainer(**OmegaConf.to_container(cfg.trainer, resolve=True), logger=False)  # type: ignore[arg-type]
    assert set(cfg.trainer) == set(composed().trainer)


@pytest.mark.parametrize("choice", choices("experiment"))
def test_every_experiment_trains(choice: str, capsys: pytest.CaptureFixture[str]):
    small = [override for override in SMALL if "lesson" in choice or "channels" not in override]
    if choice in ("cifar10_flow", "colour_flow"):
        small += ["data=fashion_mnist_mini", "data.channels=3", "model.channels=[16,32]"]
    cfg = composed(f"experiment={choice}", *small, "trainer.fast_dev_run=true")
    assert cfg.name == choice
    targets = [cfg[part]._target_ if cfg.get(part) else "none" for part in PARTS]
    assert " ".join(target.rpartition(".")[2] for target in targets) == EXPERIMENTS[choice]
    train(cfg)
    assert "training and validation work" in capsys.readouterr().out
    assert len((CONF / "experiment" / f"{choice}.yaml").read_text().splitlines()) <= 20


def test_01_lesson_has_the_settings_of_the_course():
    cfg = composed("experiment=01_lesson")
    data = cfg.data
    assert (data.batch_size, data.image_size, data.flip, cfg.noise.percent) == (128, 16, True, 0.5)
    assert (cfg.optimizer.lr, cfg.get("lr_schedule")) == (1e-4, None)
    assert cfg.trainer.max_steps == 2 * (60_000 // 128)


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


def test_hydra_settings_and_data_keys_are_written_once():
    for key in ("output_subdir:", "split_seed:", "job_logging:"):
        assert sum(key in file.read_text() for file in FILES) == 1, key
