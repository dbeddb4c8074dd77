"""The one door: `build` makes the objects of an experiment from its config."""

import copy
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch.callbacks import Callback
from lightning.pytorch.loggers.logger import Logger
from torch.nn import Parameter
from torch.optim import Optimizer

from unet_diffusion.data.datamodule import ImageDataModule
from unet_diffusion.diffusion.denoiser import Denoiser
from unet_diffusion.diffusion.predictions import VelocityPrediction
from unet_diffusion.diffusion.schedules import LinearSchedule
from unet_diffusion.diffusion.time_distributions import TimeDistribution
from unet_diffusion.errors import UserError
from unet_diffusion.experiment.compose import CONF, choices_of
from unet_diffusion.experiment.locations import unique_name, with_cache
from unet_diffusion.experiment.parts import construct
from unet_diffusion.experiment.saved import check_targets, read_yaml
from unet_diffusion.experiment.schema import (
    NUM_CLASSES,
    Recorded,
    RunConfig,
    SpeedSettings,
    TrainConfig,
)
from unet_diffusion.hardware import training_precision
from unet_diffusion.objectives import Objective
from unet_diffusion.samplers import Sampler


@dataclass(frozen=True)
class Experiment:
    """Everything that a training needs."""

    config: TrainConfig
    recorded: Recorded
    datamodule: ImageDataModule
    denoiser: Denoiser
    objective: Objective
    time_distribution: TimeDistribution
    sampler: Sampler
    optimizer: Callable[[Iterable[Parameter]], Optimizer]
    lr_schedule: Any  # training.lr_schedules.LRSchedule or None
    ema: Any  # training.ema.EMA or None
    callbacks: dict[str, Callback]
    loggers: dict[str, Logger]
    trainer_arguments: dict[str, Any]
    speed: SpeedSettings


def build(
    config: TrainConfig, run_dir: Path, recorded: Recorded, first_step: int | None
) -> Experiment:
    """Builds all parts, and checks that they accept each other.

    Args:
        config: the config.
        run_dir: where loggers write to.
        recorded: what an earlier training of a resumed run has found out.
        first_step: at which the loggers continue; None for a new run.
    """
    check_targets(config.model_dump())  # or the run could be trained, but not opened
    datamodule = build_datamodule(config)
    if message := changed_images(config, recorded, datamodule):
        raise UserError(f"{message} Use init_from to train with them.")
    precision = config.trainer.precision
    if precision == "auto" and recorded.precision is not None:
        precision = recorded.precision
    accelerator = str(config.value("trainer.accelerator"))
    precision = training_precision(accelerator, precision)
    recorded = recorded.model_copy(
        update={
            "precision": precision,
            "images": datamodule.fingerprints(),
            "loggers": logger_names(config, recorded),
        }
    )
    torch.manual_seed(config.seed)
    denoiser = build_denoiser(config, len(datamodule.class_names))
    experiment = Experiment(
        config=config,
        recorded=recorded,
        datamodule=datamodule,
        denoiser=denoiser,
        objective=construct(config.objective, "objective"),
        time_distribution=build_time_distribution(config),
        sampler=build_sampler(config),
        optimizer=construct(config.optimizer, "optimizer"),
        lr_schedule=config.lr_schedule and construct(config.lr_schedule, "lr_schedule"),
        ema=config.ema and construct(config.ema, "ema"),
        callbacks={
            name: construct(part, f"callbacks.{name}")
            for name, part in config.callbacks.items()
            if part
        },
        loggers=build_loggers(config, run_dir, recorded, first_step),
        trainer_arguments=config.trainer.model_dump() | {"precision": precision},
        speed=config.speed,
    )
    check_parts(
        denoiser,
        experiment.sampler,
        config.guidance_scale,
        config.label_dropout,
        experiment.objective,
    )
    check_images(denoiser, datamodule)
    return experiment


def build_datamodule(
    config: RunConfig, changes: dict[str, Any] | None = None, cache_dir: str | None = None
) -> ImageDataModule:
    """The data module of a config, with its splits opened.

    Args:
        config: of a run.
        changes: changed keys of the part `data`, or another part.
        cache_dir: the image cache; None: that of the config.
    """
    changes = changes or {}
    part = changes if "_target_" in changes else {**config.data, **changes}
    if cache_dir is not None:
        part = with_cache(part | {"cache_dir": config.data["cache_dir"]}, cache_dir)
    datamodule: ImageDataModule = construct(part, "data")
    datamodule.setup()
    return datamodule


def model_part(config: RunConfig, num_classes: int) -> dict[str, Any]:
    """The part `model` of a config with the number of classes of the data."""
    of_data = config.model.get("num_classes") == NUM_CLASSES
    return {**config.model, **({"num_classes": num_classes} if of_data else {})}


def build_denoiser(config: RunConfig, num_classes: int) -> Denoiser:
    """The denoiser of a config, with random weights; `num_classes` is that of the data."""
    net = construct(model_part(config, num_classes), "model")
    schedule = construct(config.schedule, "schedule")
    prediction = construct(config.prediction, "prediction")
    try:
        return Denoiser(net, schedule, prediction)
    except ValueError as error:
        raise UserError(
            f"prediction=epsilon: {error} Use schedule=ddpm with "
            "schedule.zero_terminal_snr=false, or prediction=velocity."
        ) from error


def build_time_distribution(config: RunConfig) -> TimeDistribution:
    """The time distribution of a config."""
    time_distribution: TimeDistribution = construct(config.noise, "noise")
    return time_distribution


def build_sampler(config: RunConfig, changes: dict[str, Any] | None = None) -> Sampler:
    """The sampler of a config, with changed keys, or another one with a `_target_`."""
    changes = changes or {}
    part = changes if "_target_" in changes else {**config.sampler, **changes}
    sampler: Sampler = construct(part, "sampler")
    return sampler


def named_sampler(name: str) -> Sampler:
    """The sampler of a file in conf/sampler."""
    if name not in (choices := choices_of("sampler")):
        raise UserError(f"sampler={name}: expected one of {', '.join(choices)}.")
    sampler: Sampler = construct(read_yaml(CONF / "sampler" / f"{name}.yaml"), "sampler")
    return sampler


def changed_images(
    config: RunConfig, recorded: Recorded, datamodule: ImageDataModule
) -> str | None:
    """A message if classes or images of a run's data are not those of its training."""
    names = list(datamodule.class_names)
    has_clusters = config.data.get("num_clusters") is not None
    if config.class_names and names and config.class_names != names and not has_clusters:
        changed = sorted(set(config.class_names) ^ set(names))[:5]
        return f"data.root={datamodule.root}: classes were added or removed ({', '.join(changed)})."
    images = datamodule.fingerprints()
    if not recorded.images or recorded.images == images:
        return None

    def count(checksum: str) -> str:
        return checksum.partition("-")[0]

    old = recorded.images
    counts = (f"{name} {count(old.get(name, '0'))}, now {count(images[name])}" for name in images)
    root = datamodule.root or datamodule.source.name
    return f"data.root={root}: the images changed since the training ({'; '.join(counts)})."


def logger_names(config: TrainConfig, recorded: Recorded) -> dict[str, dict[str, str | None]]:
    """Names of the runs of services by logger: those of a resumed run, or new ones."""
    name = f"{config.name.replace('/', '-')}-{unique_name()}"
    names: dict[str, dict[str, str | None]] = {}
    for kind, part in config.logger.items():
        keys = [key for key in ("id", "run_name", "name") if part and part.get(key, "") is None]
        if keys:  # of wandb, MLflow, trackio
            names[kind] = recorded.loggers.get(kind) or dict.fromkeys(keys, name)
    return names


def build_loggers(
    config: TrainConfig, run_dir: Path, recorded: Recorded, first_step: int | None
) -> dict[str, Logger]:
    """The loggers of a config, which write to the run directory or to the recorded runs."""
    loggers: dict[str, Logger] = {}
    for kind, part in config.logger.items():
        if not part:
            continue
        name = part["_target_"].rpartition(".")[2]
        arguments: dict[str, Any] = {}
        if name in ("CSVLogger", "TensorBoardLogger", "WandbLogger"):
            arguments["save_dir"] = str(run_dir)
        if name == "TensorBoardLogger":
            arguments["purge_step"] = first_step
        names = recorded.loggers.get(kind, {})
        loggers[kind] = construct(part | names, f"logger.{kind}", **arguments)
    return loggers


def check_config(config: TrainConfig) -> None:
    """Checks everything in a training config that does not depend on the data."""
    build_denoiser(config, num_classes=0)
    for key in ("noise", "objective", "sampler", "optimizer", "lr_schedule", "ema"):
        if part := getattr(config, key):
            construct(part, key)


def check_parts(
    denoiser: Denoiser,
    sampler: Sampler,
    guidance_scale: float,
    label_dropout: float,
    objective: Objective | None = None,
) -> None:
    """Checks that network, guidance, sampler and objective accept each other."""
    check_guidance(guidance_scale, denoiser, label_dropout)
    if objective is not None:
        key = "objective.guidance_scale"
        check_guidance(objective.guidance_scale, denoiser, label_dropout, key)
        if objective.needs_average_velocity:
            check_average_velocity(denoiser, "objective=average_velocity")
    if sampler.needs_average_velocity:
        check_average_velocity(denoiser, "sampler=average_velocity")


def check_guidance(
    guidance_scale: float, denoiser: Denoiser, label_dropout: float, key: str = "guidance_scale"
) -> None:
    """Checks that the network has classes and a trained null class if guidance needs them."""
    if not guidance_scale >= 1:
        raise UserError(f"{key}={guidance_scale:g}: expected at least 1 (no guidance).")
    if guidance_scale == 1:
        return
    if not denoiser.net.num_classes:
        raise UserError(
            f"{key}={guidance_scale:g}: the network has no classes. Use {key}=1, or train a "
            f"network with classes: model=unet model.num_classes='${{num_classes}}', and, for "
            f"data without classes, data.num_clusters."
        )
    if not label_dropout:
        raise UserError(
            f"{key}={guidance_scale:g}: the null class is not trained with label_dropout=0. "
            f"Use {key}=1, or train with label_dropout=0.1."
        )


def check_average_velocity(denoiser: Denoiser, key: str) -> None:
    """Checks that the denoiser can predict average velocities."""
    is_velocity = isinstance(denoiser.prediction, VelocityPrediction)
    is_linear = isinstance(denoiser.schedule, LinearSchedule)
    if not (is_velocity and is_linear and denoiser.net.accepts_interval):
        raise UserError(
            f"{key}: requires model=unet model.interval_embedding=true prediction=velocity "
            f"schedule=linear."
        )


def check_images(denoiser: Denoiser, datamodule: ImageDataModule) -> None:
    """Checks that the network accepts the images and classes of the data."""
    net, (height, width) = denoiser.net, datamodule.image_size
    if (multiple := net.size_multiple) and (height % multiple or width % multiple):
        larger = [-(-side // multiple) * multiple for side in (height, width)]
        size, fitting = (height, larger[0]) if height == width else ([height, width], larger)
        raise UserError(
            f"data.image_size={size}: height and width must be multiples of {multiple}, by which "
            f"the network downsamples. The next size is {fitting}."
        )
    if 0 < net.num_classes < (count := len(datamodule.class_names)):
        raise UserError(f"model.num_classes={net.num_classes}: at least {count}, as in the data.")
    x0 = torch.zeros(min(datamodule.batch_size, 2), *datamodule.image_shape)
    try:
        with torch.inference_mode():
            copy.deepcopy(denoiser).train()(x0, torch.ones(len(x0)))
    except ValueError as error:  # of BatchNorm, for a single value
        raise UserError(f"data.batch_size={len(x0)}: {error}. Use at least 2.") from error
    except RuntimeError as error:
        raise UserError(f"model: does not accept images {tuple(x0.shape)}: {error}") from error
