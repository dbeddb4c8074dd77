"""The config.yaml of a run: written by train.py, read from an unknown origin."""

import inspect
import os
import pydoc
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, TypeVar

import yaml
from pydantic import ValidationError

from unet_diffusion.errors import UserError, describe
from unet_diffusion.experiment.schema import Recorded, RunConfig

ALLOWED_TARGETS = {
    "data": ("unet_diffusion.data",),
    "model": ("unet_diffusion.models",),
    "noise": ("unet_diffusion.diffusion",),
    "schedule": ("unet_diffusion.diffusion",),
    "prediction": ("unet_diffusion.diffusion",),
    "sampler": ("unet_diffusion.samplers",),
    "objective": ("unet_diffusion.objectives", "unet_diffusion.samplers"),
    "optimizer": ("unet_diffusion.training.optimizers", "torch.optim"),
    "lr_schedule": ("unet_diffusion.training.lr_schedules",),
    "ema": ("unet_diffusion.training.ema",),
}
"""Modules whose classes the config of a run may name as `_target_`, per config group."""
TRUST_VARIABLE = "UNET_DIFFUSION_TRUST"
"""Environment variable with the user's own packages, separated by commas: all their classes are
allowed."""
_LOADER = getattr(yaml, "CSafeLoader", yaml.SafeLoader)  # ten times as fast, where it is built
_MAX_BYTES = 1_000_000
_MAX_DEPTH = 20
Config = TypeVar("Config", bound=RunConfig)


def read_yaml(file: Path) -> Any:
    """Reads a YAML file without tags and aliases, of bounded size and depth."""
    try:
        if file.stat().st_size > _MAX_BYTES:
            raise UserError(f"more than {_MAX_BYTES:,} bytes.")
        text = file.read_text(encoding="utf-8")
        _check_events(text)
        return yaml.load(text, _LOADER)
    except (OSError, ValueError, OverflowError, yaml.YAMLError) as error:
        raise UserError(f"Cannot read {file}: {error}") from error


def read_config(file: Path) -> dict[str, Any]:
    """Reads the config.yaml of a run as plain data.

    Values are dictionaries, lists, strings, numbers, booleans and None. Interpolations and keys
    with a leading underscore other than `_target_` and `_partial_` are errors, so nothing is left
    that could run or be resolved.
    """
    values = read_yaml(file)
    if not isinstance(values, dict):
        raise UserError(f"Cannot read {file}: not the config of a run.")
    for path, value in _walk(values):
        key = ".".join(path)
        if not isinstance(value, dict | list | str | int | float | bool | None):
            raise UserError(f"{file}: {key} is not plain data.")
        if isinstance(value, str) and "${" in value:
            raise UserError(f"{file}: {key} contains an interpolation.")
        if path and path[-1].startswith("_") and path[-1] not in ("_target_", "_partial_"):
            raise UserError(f"{file}: {key} is not allowed.")
    return values


def validate_config(schema: type[Config], values: dict[str, Any], file: Path) -> Config:
    """Checks the values that `read_config` returned against a schema, and their classes."""
    known = {name: values[name] for name in schema.model_fields if name in values}
    try:
        check_targets(known)
    except UserError as error:
        raise UserError(f"{file}: {error}") from error
    try:
        return schema.model_validate(known)
    except ValidationError as error:
        raise UserError(f"{file}: not the config of a run: {describe(error)}") from error


def check_targets(values: dict[str, Any]) -> None:
    """Checks that each `_target_` is a class that the config of a run may name in its group."""
    for path, value in _walk({name: values[name] for name in ALLOWED_TARGETS if name in values}):
        if not path or path[-1] != "_target_" or value == "_target_":
            continue
        if not _is_allowed(path[0], value):
            package = str(value).partition(".")[0]
            known = package in (*sys.stdlib_module_names, "unet_diffusion", "torch")
            hint = f" If you trust {package}, set {TRUST_VARIABLE}={package}."
            message = f"{'.'.join(path)}={value} is not an allowed class."
            raise UserError(message + ("" if known or not package.isidentifier() else hint))


def config_text(config: RunConfig, recorded: Recorded) -> str:
    """The content of config.yaml."""
    values = config.model_dump(mode="json") | {"recorded": recorded.model_dump(mode="json")}
    return yaml.safe_dump(values, sort_keys=False, allow_unicode=True)


def _check_events(text: str) -> None:
    """Rejects what makes a short text expand to gigabytes, or its parsing take hours."""
    depth = 0
    for event in yaml.parse(text, _LOADER):
        if isinstance(event, yaml.AliasEvent):
            raise UserError("it contains a YAML alias.")
        if getattr(event, "tag", None) is not None:
            raise UserError("it contains a YAML tag.")
        if isinstance(event, yaml.CollectionStartEvent):
            depth += 1
            if depth > _MAX_DEPTH:
                raise UserError(f"it is nested more than {_MAX_DEPTH} levels deep.")
        elif isinstance(event, yaml.CollectionEndEvent):
            depth -= 1


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
    if not isinstance(target, str) or not re.fullmatch(r"[\w.]+", target):
        return False
    if target.partition(".")[0] in os.environ.get(TRUST_VARIABLE, "").split(","):
        return True
    modules = ALLOWED_TARGETS.get(group, ())
    if not target.startswith(tuple(f"{module}." for module in modules)):
        return False
    try:
        found = pydoc.locate(target)
    except pydoc.ErrorDuringImport:
        return False
    return inspect.isclass(found) and f"{found.__module__}.".startswith(
        tuple(f"{module}." for module in modules)
    )
