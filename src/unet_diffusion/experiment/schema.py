"""The schema of the configs: what conf/train.yaml and the config.yaml of a run contain."""

import re
from pathlib import Path
from typing import Annotated, Any, Literal, NotRequired, Self

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    NonNegativeInt,
    PositiveInt,
    model_validator,
)
from typing_extensions import TypedDict

from unet_diffusion.errors import STRICT
from unet_diffusion.hardware import Precision

NAME_PATTERN = r"^\w[\w.-]*(/\w[\w.-]*)*$"
NUM_CLASSES = "data"
"""Value of `model.num_classes` for the number of classes of the data."""
Name = Annotated[str, Field(pattern=NAME_PATTERN, max_length=100)]
Seed = Annotated[int, Field(ge=0, lt=2**32)]
Fraction = Annotated[float, Field(ge=0, le=1)]
Decay = Annotated[float, Field(ge=0, lt=1)]
PathStr = Annotated[str, Field(min_length=1)]  # an empty one would be the current folder
LoggerKey = Annotated[str, Field(pattern="^(id|name|run_id|run_name)$")]


def _has_target(value: Any) -> Any:
    if not isinstance(value, dict) or not isinstance(value.get("_target_"), str):
        raise ValueError("expected keys with a _target_, as in the files of this group in conf")
    return value


def _check_time(value: str) -> str:
    if not re.fullmatch(r"\d{1,4}(:\d\d){3}", value) or not re.search(r"[1-9]", value):
        raise ValueError("expected DD:HH:MM:SS above 0, such as 00:00:10:00 for ten minutes")
    return value


Part = Annotated[dict[str, Any], BeforeValidator(_has_target)]
"""A class as `_target_`, and its arguments."""


class DataPart(TypedDict):
    """The part `data`, with the keys that are read before it is built."""

    __pydantic_config__ = ConfigDict(**STRICT, extra="allow")  # type: ignore[misc]

    _target_: str
    image_size: PositiveInt | Annotated[list[PositiveInt], Field(min_length=2, max_length=2)]
    channels: Literal[1, 3]
    cache_dir: PathStr
    root: NotRequired[PathStr | None]


class OptimizerPart(TypedDict):
    """The part `optimizer`. Optimizers of torch check their arguments in part only."""

    __pydantic_config__ = ConfigDict(**STRICT, extra="allow")  # type: ignore[misc]

    _target_: str
    lr: Annotated[float, Field(gt=0)]
    betas: NotRequired[Annotated[list[Decay], Field(min_length=2, max_length=2)]]
    momentum: NotRequired[Decay]
    weight_decay: NotRequired[Annotated[float, Field(ge=0)]]
    fused: NotRequired[bool | None]


class Schema(BaseModel):
    """Base class: values are of the declared types, and do not change."""

    model_config = ConfigDict(**STRICT, frozen=True, extra="forbid")


class Recorded(Schema):
    """What a training has found out: stored in config.yaml, beside the config."""

    precision: Precision | None = None  # that of precision=auto
    init_from: str | None = None  # the checkpoint or run that `latest` or `pretrained` was
    loggers: dict[str, dict[LoggerKey, str | None]] = {}  # of the runs of wandb, MLflow, trackio
    images: dict[str, str] = {}  # number and checksum of the images of each split


class RunConfig(Schema):
    """What generation and evaluation need of a run's config; the other keys are ignored."""

    model_config = ConfigDict(**STRICT, frozen=True, extra="ignore")

    name: Name
    data: DataPart
    model: Part
    noise: Part
    schedule: Part
    prediction: Part
    sampler: Part
    ema: Part | None = None
    guidance_scale: Annotated[float, Field(ge=1)]
    label_dropout: Fraction
    class_names: list[str] = []  # of the training images; set by train.py
    recorded: Recorded = Recorded()

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """(C, H, W) of the training images."""
        size = self.data["image_size"]
        height, width = [size, size] if isinstance(size, int) else size
        return self.data["channels"], height, width


class SpeedSettings(Schema):
    """The keys of `speed`."""

    channels_last: Literal["auto"] | bool
    compile: Literal["auto"] | bool
    images_on_device: Literal["auto"] | bool


class TrainerSettings(Schema):
    """The arguments of lightning.Trainer that are checked here; Lightning checks the others."""

    model_config = ConfigDict(**STRICT, frozen=True, extra="allow")

    max_steps: PositiveInt | Literal[-1]
    max_epochs: PositiveInt | Literal[-1]
    max_time: Annotated[str, AfterValidator(_check_time)] | None
    val_check_interval: PositiveInt
    check_val_every_n_epoch: PositiveInt | None
    log_every_n_steps: PositiveInt
    gradient_clip_val: Annotated[float, Field(gt=0)] | None
    accumulate_grad_batches: PositiveInt
    fast_dev_run: bool | NonNegativeInt
    num_sanity_val_steps: NonNegativeInt
    precision: Literal["auto", Precision]
    limit_train_batches: Annotated[int | float, Field(gt=0)] | None = None
    limit_val_batches: Annotated[int | float, Field(gt=0)] | None = None
    limit_test_batches: Annotated[int | float, Field(gt=0)] | None = None

    @model_validator(mode="after")
    def _has_a_limit(self) -> Self:
        if self.max_steps == -1 and self.max_epochs == -1 and self.max_time is None:
            raise ValueError("set one of max_steps, max_epochs and max_time")
        return self


class TrainConfig(RunConfig):
    """conf/train.yaml with all groups."""

    model_config = ConfigDict(**STRICT, frozen=True, extra="forbid")

    objective: Part
    optimizer: OptimizerPart
    lr_schedule: Part | None = None
    callbacks: dict[str, Part | None]
    logger: dict[str, Part | None] = {}
    speed: SpeedSettings
    trainer: TrainerSettings
    output_dir: PathStr
    run_dir: PathStr | None
    resume: PathStr | None
    init_from: PathStr | None
    camera_noise: Fraction
    seed: Seed
    noise_seed: Seed
    cache_dir: PathStr
    optimized_metric: str
    sweep_dir: PathStr
    num_classes: Literal["data"]
    debug: bool
    # Set by the command line:
    choices: dict[str, str] = {}  # of the config groups
    references: dict[str, str] = Field(default={}, exclude=True)  # see `compose.references`
    overrides: list[str] = Field(default=[], exclude=True)  # without run_dir, resume, sweep_dir
    sweep_job_dir: Path | None = Field(default=None, exclude=True)  # run directory in a sweep

    def value(self, key: str) -> Any:
        """The choice of a config group, or the value of a dotted key."""
        return choice_or_value(self.model_dump(by_alias=True), key)


def choice_or_value(values: dict[str, Any], key: str) -> Any:
    """The choice of a config group, or the value of a dotted key, in a plain config."""
    choices = values.get("choices")
    if isinstance(choices, dict) and key in choices:
        return choices[key]
    return node_of(values, key)


def node_of(values: dict[str, Any], key: str) -> Any:
    """The value of a dotted key in a plain config, None without one."""
    node: Any = values
    for part in key.split("."):
        node = node.get(part) if isinstance(node, dict) else None
    return node
