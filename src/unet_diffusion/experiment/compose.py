"""From the files in conf/ and the overrides of a command line to checked arguments."""

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any, TypeVar

import hydra
from hydra.core.global_hydra import GlobalHydra
from hydra.core.hydra_config import HydraConfig
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf
from pydantic import BaseModel, ValidationError

from unet_diffusion.errors import UserError, describe
from unet_diffusion.experiment.schema import TrainConfig

_PARENTS = Path(__file__).parents
CONF = next(parent / "conf" for parent in (_PARENTS[1], _PARENTS[3]) if (parent / "conf").is_dir())
"""The folder with the configs: part of an installed package, at the top level of a clone."""
_NOT_SETTINGS = ("resume=", "run_dir=", "sweep_dir=")
_PATHS = {
    *("run_dir", "output_dir", "sweep_dir", "resume", "init_from", "cache_dir", "data.root"),
    *("run", "runs", "input", "output", "init_image", "lesson", "benchmark_output", "features"),
    *("images", "mask", "blur.kernel", "callbacks.checkpoint.filename"),
}
"""Keys whose value is a path or the name of a run."""
_KEPT_CHOICES = ("experiment", "logger", "accelerator")
Arguments = TypeVar("Arguments", bound=BaseModel)
OmegaConf.register_new_resolver("expanduser", lambda path: str(Path(path).expanduser()))


def hydra_override(override: str, open_groups: Sequence[str] = (), is_sweep: bool = False) -> str:
    """Rewrites group=null, group=<number>, paths and keys of `open_groups` in Hydra's syntax.

    A path is a string, with all its characters, but Hydra reads 2026_05_01 as a number.
    `open_groups` accept keys that are not in conf/: those of the run that a script opens.
    """
    key, equals, value = override.partition("=")
    is_list = value.startswith("[") if key == "runs" else is_sweep and re.search(r"[,(]", value)
    is_quoted = value.startswith(("'", '"')) or "${" in value
    if key in _PATHS and value not in ("null", "???") and not is_list and not is_quoted:
        escaped = re.sub(r"(\\*)(')", r"\1\1\\\2", value)
        return f"{key}='{escaped}'"
    if equals and key.isidentifier() and (CONF / key).is_dir():
        if value == "null":
            return f"~{key}"
        return f"{key}='{value}'" if re.fullmatch(r"[\d.]+", value) else override
    is_open = override.startswith(tuple(f"{group}." for group in open_groups))
    return f"++{override}" if is_open else override


def compose(config_name: str, overrides: Sequence[str]) -> DictConfig:
    """A config with its `hydra` node, outside of Hydra's own application or within it."""
    composed = [hydra_override(override) for override in overrides]
    if GlobalHydra.instance().is_initialized():
        return hydra.compose(config_name, composed, return_hydra_config=True)
    with hydra.initialize_config_dir(str(CONF), version_base="1.3"):
        return hydra.compose(config_name, composed, return_hydra_config=True)


def compose_resume(choices: dict[str, str], overrides: Sequence[str]) -> DictConfig:
    """conf/train.yaml for a resumed run.

    Callbacks, loggers and devices are not taken from the run, which can be of unknown origin, but
    composed from the files in conf/ that its choices name, and from the overrides.
    """
    given = {override.partition("=")[0] for override in overrides}
    kept = [
        f"{group}={choices[group]}"
        for group in _KEPT_CHOICES
        if group not in given and choices.get(group) in choices_of(group)
    ]
    return compose("train", [*kept, *overrides])


def read_arguments(cfg: DictConfig, schema: type[Arguments]) -> Arguments:
    """The resolved config, checked against the schema of a command.

    With a `hydra` node, or within a job of Hydra, a TrainConfig knows its choices and overrides.
    """
    node = cfg.get("hydra") or (HydraConfig.get() if HydraConfig.initialized() else None)
    plain = OmegaConf.masked_copy(cfg, [str(key) for key in cfg if key != "hydra"])
    for group, field in schema.model_fields.items():
        if field.is_required() and cfg.get(group) is None and (choices := choices_of(group)):
            raise UserError(f"{group}=null: expected one of {', '.join(choices)}.")
    values: Any = OmegaConf.to_container(plain, resolve=True, throw_on_missing=True)
    root = values["data"].get("root") if isinstance(values.get("data"), dict) else None
    if root and not Path(root).expanduser().is_absolute():  # it is stored, and used elsewhere
        values["data"]["root"] = str(Path(root).absolute())
    if issubclass(schema, TrainConfig) and node is not None:
        values["choices"] = {k: v for k, v in node.runtime.choices.items() if "/" not in k and v}
        task = [str(override) for override in node.overrides.task]
        values["overrides"] = [each for each in task if not each.startswith(_NOT_SETTINGS)]
        values["name"] = values["name"] or values["choices"].get("model", "run")
        values["references"] = references(plain)
    if not issubclass(schema, TrainConfig):
        del values["debug"]
    try:
        return schema.model_validate(values)
    except ValidationError as error:
        raise UserError(describe(error)) from error


def references(cfg: DictConfig) -> dict[str, str]:
    """Keys whose value is that of another key: `{"model.image_size": "data.image_size"}`."""
    found: dict[str, str] = {}

    def walk(node: Any, prefix: str) -> None:
        for key, value in node.items() if isinstance(node, dict) else ():
            match = re.fullmatch(r"\$\{([\w.]+)\}", value) if isinstance(value, str) else None
            if match:
                found[f"{prefix}{key}"] = match[1]
            walk(value, f"{prefix}{key}.")

    walk(OmegaConf.to_container(cfg, resolve=False), "")
    return found


def is_sweep_job() -> bool:
    """Whether this is a job of a Hydra multirun."""
    return HydraConfig.initialized() and HydraConfig.get().mode == RunMode.MULTIRUN


def choices_of(group: str) -> list[str]:
    """The choices of a config group."""
    return sorted(file.stem for file in (CONF / group).glob("*.yaml") if file.stem != "base")


def other_choices(key: str) -> str:
    """Names the choices of a group that have a key: ` It is a key of sampler=ddim, heun.`"""
    group, _, name = key.rpartition(".")
    pattern = re.compile(rf"^{re.escape(name)}:", re.MULTILINE)
    files = sorted((CONF / group).glob("*.yaml")) if group else []
    choices = [file.stem for file in files if pattern.search(file.read_text())]
    return f" It is a key of {group}={', '.join(choices)}." if choices else ""
