"""From a config to objects: instantiation, validation, and run configs of unknown origin."""

import inspect
import pydoc
import re
from collections.abc import Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Annotated, Any, Literal, Self, get_type_hints

import hydra
import yaml
from hydra.core.hydra_config import HydraConfig
from hydra.errors import InstantiationException
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf
from pydantic import BaseModel, ConfigDict, Field, TypeAdapter, ValidationError, model_validator

from unet_diffusion.data.datamodule import ImageDataModule
from unet_diffusion.diffusion.denoiser import Denoiser

_PARENTS = Path(__file__).parents
CONF = next(parent / "conf" for parent in (_PARENTS[0], _PARENTS[2]) if (parent / "conf").is_dir())
"""The folder with the configs: part of an installed package, at the top level of a clone."""
STRICT = ConfigDict(strict=True, allow_inf_nan=False, arbitrary_types_allowed=True)
"""pydantic settings: no conversion between types, so `flip=no` is an error and not true."""

ALLOWED_TARGETS = {
    "data": ("unet_diffusion.data",),
    "model": ("unet_diffusion.models",),
    "noise": ("unet_diffusion.diffusion",),
    "schedule": ("unet_diffusion.diffusion",),
    "prediction": ("unet_diffusion.diffusion",),
    "weighting": ("unet_diffusion.diffusion",),
    "sampler": ("unet_diffusion.samplers",),
    "objective": ("unet_diffusion.training.objectives", "unet_diffusion.samplers"),
    "optimizer": ("unet_diffusion.training.optimizers", "torch.optim"),
    "lr_schedule": ("unet_diffusion.training.lr_schedules",),
    "ema": ("unet_diffusion.training.callbacks",),
    "callbacks": (
        "unet_diffusion.training.callbacks",
        "unet_diffusion.samplers",
        "lightning.pytorch.callbacks",
    ),
    "logger": ("lightning.pytorch.loggers", "unet_diffusion.training.loggers"),
}
"""Modules whose classes the config of a run directory may name as `_target_`, per config group."""
GENERATION_GROUPS = ("data", "model", "noise", "schedule", "prediction", "weighting", "sampler")
"""Config groups that are instantiated for generation and evaluation; a resume needs all others."""

NAME_PATTERN = r"^\w[\w.-]*(/\w[\w.-]*)*$"
_UNION_MEMBER = re.compile(r"^(bool|int|float|str)$|[\[-]")


class TrainerSettings(BaseModel):
    """The arguments of lightning.Trainer that are checked here; Lightning checks the others."""

    model_config = ConfigDict(**STRICT, extra="allow")

    max_steps: Annotated[int, Field(ge=1)] | Literal[-1]
    max_epochs: Annotated[int, Field(ge=1)] | Literal[-1]
    max_time: Annotated[str, Field(pattern=r"^\d+:\d\d:\d\d:\d\d$")] | None
    val_check_interval: Annotated[int, Field(ge=1)]
    log_every_n_steps: Annotated[int, Field(ge=1)]
    gradient_clip_val: Annotated[float, Field(gt=0)] | None
    accumulate_grad_batches: Annotated[int, Field(ge=1)]
    fast_dev_run: bool | int
    precision: Literal["auto", "32-true", "bf16-mixed", "16-mixed"]
    limit_val_batches: Annotated[int | float, Field(gt=0)] | None = None
    limit_test_batches: Annotated[int | float, Field(gt=0)] | None = None

    @model_validator(mode="after")
    def _has_a_limit(self) -> Self:
        if self.max_steps == -1 and self.max_epochs == -1 and self.max_time is None:
            raise ValueError("set one of max_steps, max_epochs and max_time")
        return self


class TrainSettings(BaseModel):
    """The keys of conf/train.yaml that belong to no class of their own."""

    model_config = ConfigDict(**STRICT, extra="allow")

    name: Annotated[str, Field(pattern=NAME_PATTERN, max_length=100)] | None
    seed: Annotated[int, Field(ge=0, lt=2**32)]
    noise_seed: Annotated[int, Field(ge=0, lt=2**32)]
    label_dropout: Annotated[float, Field(ge=0, le=1)]
    guidance_scale: Annotated[float, Field(ge=1)]
    speed: dict[Literal["channels_last", "compile", "images_on_device"], Literal["auto"] | bool]
    trainer: TrainerSettings


def instantiate(cfg: DictConfig, key: str, **arguments: Any) -> Any:
    """Instantiates the `_target_` at a dotted key of the whole config, with further `arguments`.

    An unknown class or argument, or an argument of the wrong type or out of range, is a ValueError
    that starts with the key.
    """
    node = OmegaConf.select(cfg, key)
    resolved = node
    if OmegaConf.is_config(node):
        resolved = OmegaConf.to_container(node, resolve=True, throw_on_missing=True)
    if not isinstance(resolved, dict) or "_target_" not in resolved:
        group = key.partition(".")[0]
        raise ValueError(f"{key}={resolved}: expected keys with a _target_, see conf/{group}/.")
    try:
        _check_arguments(resolved, key)
        return hydra.utils.instantiate(resolved, _convert_="all", **arguments)
    except InstantiationException as error:
        message = str(error.__cause__ or error)
        raise ValueError(_with_full_key(message, cfg, key)) from error


def _check_arguments(node: dict[Any, Any], key: str) -> None:
    """Checks names and types of the arguments against the signature of the target."""
    target = _locate(node["_target_"])
    if not callable(target):
        raise ValueError(f"{key}._target_={node['_target_']}: no such class.")
    parameters = inspect.signature(target).parameters
    # Of other packages' classes only the booleans: torch accepts any true value for them.
    hints = {n: p.annotation for n, p in parameters.items() if p.annotation in (bool, bool | None)}
    if target.__module__.startswith("unet_diffusion"):
        hints = get_type_hints(target.__init__, include_extras=True)
    accepts_any = any(each.kind == each.VAR_KEYWORD for each in parameters.values())
    for name, value in node.items():
        if name in ("_target_", "_partial_"):
            continue
        if name not in parameters and not accepts_any:
            expected = ", ".join(parameters) or "no keys"
            hint = other_choices(f"{key}.{name}")
            raise ValueError(f"{key}.{name}: unknown key. {target.__name__} has {expected}.{hint}")
        if isinstance(value, dict) and "_target_" in value:
            _check_arguments(value, f"{key}.{name}")
        elif name in hints:
            try:
                TypeAdapter(hints[name], config=STRICT).validate_python(value)
            except ValidationError as error:
                raise ValueError(describe(error, f"{key}.{name}")) from error


def other_choices(key: str) -> str:
    """Names the choices of a group that have a key: ` It is a key of sampler=ddim, heun.`"""
    group, _, name = key.rpartition(".")
    pattern = re.compile(rf"^{re.escape(name)}:", re.MULTILINE)
    files = sorted((CONF / group).glob("*.yaml")) if group else []
    choices = [file.stem for file in files if pattern.search(file.read_text())]
    return f" It is a key of {group}={', '.join(choices)}." if choices else ""


def _locate(target: object) -> Any:
    """The class or function of a `_target_`, None if there is none."""
    try:
        return pydoc.locate(str(target))
    except pydoc.ErrorDuringImport:
        return None


def _with_full_key(message: str, cfg: DictConfig, key: str) -> str:
    """Replaces the leading argument of `percent=50: ...` by the key that sets it, noise.percent."""
    argument, equals, rest = message.partition("=")
    if not equals or not argument.isidentifier():
        return f"{key}: {message}"
    raw = OmegaConf.to_container(OmegaConf.select(cfg, key), resolve=False)
    value = raw.get(argument) if isinstance(raw, dict) else None
    reference = re.fullmatch(r"\$\{([\w.]+)\}", str(value))
    return f"{reference[1] if reference else f'{key}.{argument}'}={rest}"


def describe(error: ValidationError, key: str = "") -> str:
    """The first error of pydantic on one line: key, value, and what is allowed."""

    def path(location: tuple[int | str, ...]) -> str:
        # pydantic appends the member of a union, such as `int` or `literal['auto']`.
        parts = [str(part) for part in location]
        return ".".join([key] * bool(key) + [p for p in parts if not _UNION_MEMBER.search(p)])

    first, *others = error.errors()
    messages = [first["msg"]]
    messages += [each["msg"] for each in others if path(each["loc"]) == path(first["loc"])]
    message = " or ".join(dict.fromkeys(messages)).removeprefix("Value error, ")
    message = re.sub("(Input|String) should", "should", message.replace("or Input should be", "or"))
    value = f"={first['input']}" if not isinstance(first["input"], dict) else ""
    return f"{path(first['loc'])}{value}: {message}."


def check_settings(cfg: DictConfig) -> None:
    """Checks the keys of conf/train.yaml that belong to no class of their own."""
    for section in ("trainer", "speed", "callbacks", "logger"):
        if not OmegaConf.is_dict(value := cfg.get(section)):
            raise ValueError(f"{section}={value}: expected keys, as in {section}.<key>=...")
    try:
        TrainSettings.model_validate(OmegaConf.to_container(cfg, resolve=True))
    except ValidationError as error:
        raise ValueError(describe(error)) from error


def check_config(cfg: DictConfig) -> None:
    """Checks everything in a training config that does not depend on the data."""
    check_settings(cfg)
    build_denoiser(cfg)
    for key in ("noise", "objective", "sampler", "optimizer", "lr_schedule", "ema"):
        if cfg.get(key):
            instantiate(cfg, key)


def is_sweep_job() -> bool:
    """Whether this is a job of a Hydra multirun."""
    return HydraConfig.initialized() and HydraConfig.get().mode == RunMode.MULTIRUN


def build_denoiser(cfg: DictConfig) -> Denoiser:
    """The denoiser of a config, with random weights."""
    net, schedule, prediction = map(partial(instantiate, cfg), ("model", "schedule", "prediction"))
    weighting = instantiate(cfg, "weighting") if cfg.get("weighting") else None
    return Denoiser(net, schedule, prediction, weighting)


def build_datamodule(cfg: DictConfig) -> ImageDataModule:
    """The data module of a config, with its splits opened; sets the classes in the config."""
    datamodule: ImageDataModule = instantiate(cfg, "data")
    datamodule.setup()
    cfg.class_names, cfg.num_classes = [*datamodule.class_names], len(datamodule.class_names)
    return datamodule


def choice_or_value(config: DictConfig, key: str) -> Any:
    """The choice of a config group, or the value of a key."""
    return config.get("choices", {}).get(key, OmegaConf.select(config, key))


def moved_root(data: Mapping[str, Any] | DictConfig, cache_dir: str) -> str | None:
    """`root` of a data config; if it was in the cache and is missing, its place in `cache_dir`."""
    root: str | None = data.get("root")
    old_cache = str(data["cache_dir"]).removesuffix("resized")
    if root and root.startswith(old_cache) and not Path(root).expanduser().is_dir():
        return f"{cache_dir}/{root.removeprefix(old_cache)}"
    return root


def load_run_config(file: Path) -> DictConfig:
    """Reads the config.yaml of a run directory, which may come from an unknown origin.

    The file is parsed as plain data, and interpolations are rejected after parsing. The classes in
    `GENERATION_GROUPS` must be allowed; `check_targets` checks the others before a resume.
    """
    try:
        text = file.read_text(encoding="utf-8")
        # A few lines of aliases of aliases expand to gigabytes.
        if any(isinstance(event, yaml.AliasEvent) for event in yaml.parse(text, yaml.SafeLoader)):
            raise ValueError("it contains a YAML alias.")
        data = yaml.safe_load(text)
    except (OSError, ValueError, yaml.YAMLError, RecursionError) as error:
        raise ValueError(f"Cannot read {file}: {error}") from error
    if not isinstance(data, dict):
        raise ValueError(f"Cannot read {file}: not the config of a run.")
    for path, value in _walk(data):
        if isinstance(value, str) and "${" in value:
            raise ValueError(f"{file}: {'.'.join(path)} contains an interpolation.")
        if path and path[-1].startswith("_") and path[-1] not in ("_target_", "_partial_"):
            raise ValueError(f"{file}: {'.'.join(path)} is not allowed.")
    check_targets({key: data[key] for key in GENERATION_GROUPS if key in data}, str(file))
    if not isinstance(data.get("name"), str) or not re.fullmatch(NAME_PATTERN, data["name"]):
        raise ValueError(f"{file}: name={data.get('name')} is not the name of a run.")
    missing = [key for key in ("data", "model", "schedule", "sampler") if key not in data]
    if missing:
        raise ValueError(f"{file}: not the config of a run, {', '.join(missing)} missing.")
    return OmegaConf.create(data)


def check_targets(config: dict[str, Any], origin: str, trusted: DictConfig | None = None) -> None:
    """Checks that every `_target_` of a plain config is a class that is allowed in its group.

    Those that are the same in a `trusted` config are allowed too. Errors start with `origin`.
    """
    for path, value in _walk(config):
        key = ".".join(path)
        if not path or path[-1] != "_target_" or _is_allowed(path[0], value):
            continue
        if not value or trusted is None or OmegaConf.select(trusted, key) != value:
            raise ValueError(f"{origin}: {key}={value} is not an allowed class.")


def _walk(node: Any, path: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], Any]]:
    """All values of a tree with their paths; keys are yielded as values too."""
    yield path, node
    if isinstance(node, dict):
        for key, value in node.items():
            yield path, key
            yield from _walk(value, (*path, str(key)))
    elif isinstance(node, list):
        for value in node:
            yield from _walk(value, path)


def _is_allowed(group: str, target: object) -> bool:
    """Whether the target is a class that is defined in an allowed module of the group.

    A dotted name that merely starts with an allowed module is not enough: it could lead to what the
    module imports.
    """
    modules = ALLOWED_TARGETS.get(group, ())
    if not isinstance(target, str) or not target.startswith(tuple(f"{m}." for m in modules)):
        return False
    found = _locate(target)
    return inspect.isclass(found) and f"{found.__module__}.".startswith(
        tuple(f"{module}." for module in modules)
    )
