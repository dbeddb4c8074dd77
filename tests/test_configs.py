"""Every choice of every group composes, instantiates, and documents its keys."""

import re
from pathlib import Path

import pytest
import torch
from helpers import CONF, SMALL, composed
from hydra.core.hydra_config import HydraConfig
from hydra.utils import instantiate
from lightning import LightningDataModule
from lightning.pytorch.callbacks import Callback
from lightning.pytorch.loggers import Logger
from omegaconf import OmegaConf

from unet_diffusion.data.datamodule import ImageDataModule
from unet_diffusion.diffusion.levels import Levels
from unet_diffusion.diffusion.predictions import Prediction
from unet_diffusion.diffusion.schedules import Schedule
from unet_diffusion.diffusion.weightings import Weighting
from unet_diffusion.errors import UserError
from unet_diffusion.samplers.base import Sampler
from unet_diffusion.training.building import build_module, build_trainer
from unet_diffusion.training.experiment import train
from unet_diffusion.training.lr_schedules import LRSchedule

KINDS = {
    "data": ImageDataModule,
    "model": torch.nn.Module,
    "noise": Levels,
    "schedule": Schedule,
    "prediction": Prediction,
    "weighting": Weighting,
    "lr_schedule": LRSchedule,
    "sampler": Sampler,
}


def choices(group: str) -> list[str]:
    return sorted(file.stem for file in (CONF / group).glob("*.yaml"))


@pytest.mark.parametrize(
    ("group", "choice"), [(group, choice) for group in KINDS for choice in choices(group) if choice != "from_run"]
)
def test_each_part_instantiates_as_what_it_should_be(group: str, choice: str):
    cfg = composed(f"{group}={choice}")
    assert isinstance(instantiate(cfg[group], _convert_="all"), KINDS[group])


@pytest.mark.parametrize("choice", choices("optimizer"))
def test_each_optimizer_takes_a_step(choice: str):
    parameter = torch.nn.Parameter(torch.ones(1))
    optimizer = instantiate(composed(f"optimizer={choice}").optimizer, _convert_="all")([parameter])
    parameter.sum().backward()
    optimizer.step()
    assert parameter.item() < 1


@pytest.mark.parametrize("choice", choices("logger"))
@pytest.mark.parametrize("callbacks", choices("callbacks"))
def test_loggers_and_callbacks_make_a_trainer(choice: str, callbacks: str, tmp_path: Path):
    trainer = build_trainer(composed(f"logger={choice}", f"callbacks={callbacks}", "precision=fp32"), tmp_path / "run")
    assert all(isinstance(logger, Logger) for logger in trainer.loggers)
    assert all(isinstance(callback, Callback) for callback in trainer.callbacks)
    assert len(trainer.loggers) == (2 if choice == "tensorboard" else 1)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("group", ["accelerator", "precision"])
def test_hardware_groups_only_set_the_trainers_own_keys(group: str):
    plain = set(composed().trainer)
    for choice in choices(group):
        assert set(composed(f"{group}={choice}").trainer) == plain


@pytest.mark.parametrize("choice", choices("experiment"))
def test_every_experiment_runs_two_steps_on_the_images_in_the_package(choice: str, tmp_path: Path):
    quick = [word for word in SMALL if not word.startswith("model=")]
    quick += ["trainer.max_steps=2", "callbacks.pictures.num_images=2"]
    if choice == "cifar10_flow":
        quick += ["data=fashion_mnist_mini", "data.channels=3", "model.channels=[16,32]"]
    train(composed(*quick, f"experiment={choice}"), tmp_path / "run", quick)
    assert (tmp_path / "run" / "metrics.json").is_file()


@pytest.mark.parametrize("schedule", choices("schedule"))
@pytest.mark.parametrize("noise", choices("noise"))
@pytest.mark.parametrize("prediction", choices("prediction"))
def test_the_lessons_network_learns_on_every_schedule_and_distribution(schedule: str, noise: str, prediction: str):
    """As a blind denoiser; except where no clean image could be read from its answer."""
    typed = (f"schedule={schedule}", f"noise={noise}", f"prediction={prediction}", "model=lesson_narrow")
    if prediction == "noise" and schedule != "ddpm":
        with pytest.raises(UserError, match="prediction=noise needs a schedule"):
            build_module(composed(*typed), (16, 16))
        return
    torch.manual_seed(0)
    denoiser = build_module(composed(*typed), (16, 16)).denoiser.train()
    levels = instantiate(composed(*typed).noise)
    x0 = torch.rand(32, 1, 16, 16) * 0.2 - 0.9
    optimizer = torch.optim.AdamW(denoiser.parameters(), lr=1e-2)
    losses = []
    for _ in range(25):
        loss = denoiser.loss(x0, torch.randn_like(x0), levels.draw(32))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert sum(losses[-5:]) < 0.7 * sum(losses[:5])


def test_the_lesson_experiment_keeps_the_courses_settings():
    cfg = composed("experiment=01_lesson")
    assert (cfg.optimizer.lr, cfg.data.batch_size, cfg.data.image_size, cfg.noise.percent) == (1e-4, 128, 16, 0.5)
    assert cfg.optimizer._target_ == "torch.optim.Adam"
    assert cfg.trainer.max_steps == 2 * (60_000 // 128)
    assert cfg.data.flip is True


def test_each_experiment_is_one_short_file_that_changes_one_thing():
    targets = {}
    for choice in choices("experiment"):
        assert len((CONF / "experiment" / f"{choice}.yaml").read_text().splitlines()) <= 20
        cfg = composed(f"experiment={choice}")
        assert cfg.name == choice
        groups = ("model", "noise", "schedule", "prediction", "sampler", "averaging", "optimizer")
        targets[choice[:2]] = [str(cfg[group].get("_target_", "none")).rpartition(".")[2] for group in groups]
    assert targets == {
        "01": ["LessonUNet", "FixedLevel", "LinearSchedule", "X0Prediction", "OneShot", "none", "Adam"],
        "02": ["LessonUNet", "UniformLevels", "LinearSchedule", "X0Prediction", "DDIM", "none", "AdamW"],
        "03": ["UNet", "UniformLevels", "LinearSchedule", "X0Prediction", "DDIM", "none", "AdamW"],
        "04": ["UNet", "LogitNormalLevels", "LinearSchedule", "VelocityPrediction", "Heun", "EMA", "Muon"],
        "05": ["UNet", "UniformLevels", "DDPMSchedule", "NoisePrediction", "Heun", "EMA", "Muon"],
        "06": ["UNet", "LogitNormalLevels", "LinearSchedule", "VelocityPrediction", "Heun", "EMA", "Muon"],
        "ci": ["UNet", "LogitNormalLevels", "LinearSchedule", "VelocityPrediction", "Heun", "EMA", "Muon"],
    }


@pytest.mark.parametrize("channels", ["[8,16]", "[16,32,64]", "[4,8,8,16]"])
def test_any_widths_and_sizes_compose(channels: str):
    cfg = composed(f"model.channels={channels}", "data.image_size=[16,24]", "data.channels=3")
    module = build_module(cfg, (16, 24))
    assert module(torch.randn(2, 3, 16, 24), torch.ones(2)).shape == (2, 3, 16, 24)


@pytest.mark.parametrize("file", sorted(CONF.rglob("*.yaml")), ids=lambda file: str(file.relative_to(CONF)))
def test_every_key_has_a_comment(file: Path):
    """A key with a value of its own says on its line what it means; wiring (_target_, references, group choices) need not."""
    text = file.read_text().partition("\nhydra:")[0]
    for line in text.splitlines():
        if line.strip() == "defaults:":
            continue
        match = re.match(r"\s*([a-z_]+):\s*([^#\s].*?)?\s*(#.*)?$", line)
        if not match or match[2] is None or match[1] in ("_target_", "_partial_") or match[2].startswith("${"):
            continue
        wired = file.parent.name in ("logger", "callbacks") and match[1] in (
            "name",
            "version",
            "filename",
            "mode",
            "logging_interval",
            "auto_insert_metric_name",
        )
        assert match[3] or wired or file.parent.name == "experiment", f"{file}: {line}"


@pytest.mark.parametrize("name", ["train", "sample", "evaluate", "denoise", "report", "train_features"])
def test_primary_configs_resolve(name: str):
    nothing: list[str] = []
    several = ["runs=somewhere"]
    needed = {"train": nothing, "train_features": nothing, "report": several}.get(name, ["run=somewhere"])
    OmegaConf.to_container(composed(*needed, config=name), resolve=True, throw_on_missing=True)


def test_nothing_here_needs_hydras_global_state():
    assert not HydraConfig.initialized()
    assert issubclass(ImageDataModule, LightningDataModule)
