"""A run's config.yaml, read as data: it may come from somebody else.

Only what train.py writes is taken: plain YAML of a moderate size, without tags, anchors and references, whose parts name
classes of this project that belong in their places.
"""

import inspect
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any

import torch
import yaml
from hydra.utils import get_object
from lightning.pytorch.callbacks import Callback
from lightning.pytorch.loggers import Logger
from omegaconf import DictConfig, OmegaConf

from unet_diffusion.checks import image_size_of
from unet_diffusion.errors import UserError, first_line, printable
from unet_diffusion.parts import KINDS
from unet_diffusion.paths import open_file

PARTS = ("data", "model", "noise", "schedule", "prediction", "weighting", "sampler")
"""The parts of a saved config that opening a run may build."""
_PACKAGE = "unet_diffusion."
_OF_TRAINING: Mapping[str, type] = {
    "torch.optim.": torch.optim.Optimizer,
    "lightning.pytorch.callbacks.": Callback,
    "lightning.pytorch.loggers.": Logger,
    "optuna.pruners.": object,
}
"""What else a config may name that is to be trained: the module and the kind of class."""
_MOST_BYTES = 1 << 20
_DEEPEST = 20
_LARGEST = 10**18
_LOADER: Any = getattr(yaml, "CSafeLoader", yaml.SafeLoader)  # the one in C reads the largest file in a second
_PLAIN = (str, int, float, bool, type(None))


def read_config(file: Path, where: str, trainable: bool = False) -> DictConfig:
    """A run's config.

    Args:
        file: its config.yaml.
        where: what the user typed to name the run, for messages.
        trainable: the whole config is to be built, not only what draws: all that it names is checked.

    Raises:
        UserError: the config is damaged, holds more than plain data, or names classes that do not belong there.
    """
    try:
        data = plain_yaml(file)
        if isinstance(data, dict):  # runs of before there were others
            data.setdefault("weighting", {"_target_": "unet_diffusion.diffusion.weightings.Unweighted"})
        if not isinstance(data, dict) or not all(isinstance(data.get(part), dict) for part in PARTS):
            raise ValueError(f"it should have the parts {', '.join(PARTS)}")
        if "name" not in data or data["data"].get("channels") not in (1, 3):
            raise ValueError("it should have a name, and data.channels of 1 or 3")
        image_size_of(data["data"].get("image_size"))
        config = OmegaConf.create(data)
    except (OSError, ValueError, yaml.YAMLError) as error:
        raise UserError(f"{where}: its config.yaml cannot be read: {printable(first_line(error))}") from error
    for part in PARTS:
        _check_targets(data[part], f"{where}: {part}", KINDS[part])
    if trainable:
        for part in data.keys() - set(PARTS):
            _check_targets(data[part], f"{where}: {part}", others=_OF_TRAINING)
    return config


def plain_yaml(file: Path, references: bool = False) -> Any:
    """What a YAML file holds: mappings with words as keys, lists, texts, numbers, true, false and null.

    Args:
        file: the file.
        references: take `${...}` as words like all others; only where nobody resolves them.

    Raises:
        OSError: it cannot be read.
        ValueError: it is too large, too deep, or holds anything else.
        yaml.YAMLError: it is no YAML.
    """
    with open_file(file) as stream:
        content = stream.read(_MOST_BYTES + 1)
    if len(content) > _MOST_BYTES:
        raise ValueError(f"it has more than {_MOST_BYTES:,} bytes")
    text = content.decode()
    if "${" in text and not references:  # one could lead from a part that is checked to one that is not
        raise ValueError("it holds references (${...}), which train.py never writes")
    depth = 0
    for event in yaml.parse(text, Loader=_LOADER):
        depth += isinstance(event, yaml.CollectionStartEvent) - isinstance(event, yaml.CollectionEndEvent)
        if depth > _DEEPEST:
            raise ValueError(f"it is nested more than {_DEEPEST} deep")
        if getattr(event, "anchor", None) is not None or getattr(event, "tag", None) is not None:
            raise ValueError("it holds anchors, aliases or tags (&, *, !), which train.py never writes")
    data = yaml.load(text, Loader=_LOADER)
    _check_plain(data)
    return data


def _check_plain(node: Any) -> None:
    if isinstance(node, dict):
        for key, value in node.items():
            if not isinstance(key, (str, int)):  # Lightning's GradientAccumulationScheduler has epochs as keys
                raise ValueError(f"its key {key!r} is no word")
            _check_plain(value)
    elif isinstance(node, list):
        for value in node:
            _check_plain(value)
    elif isinstance(node, int) and abs(node) > _LARGEST:
        raise ValueError("it holds a number that is too large")
    elif not isinstance(node, _PLAIN):
        raise ValueError(f"it holds a {type(node).__name__}, which train.py never writes")


def _check_targets(node: Any, where: str, kind: type = object, others: Mapping[str, type] = MappingProxyType({})) -> None:
    """Refuses classes that are not this project's own, or not of the kind that belongs there.

    A dotted name that merely begins with ours is not enough (`unet_diffusion.saved_checkpoint.pickle.loads`): what it leads to
    must be a class that is defined in this package, or one of the kind that `others` has for a known library's module.
    """
    if isinstance(node, dict):
        if "_target_" in node:
            name = str(node["_target_"])
            found = _known_object(name, (_PACKAGE, *others))
            allowed = {_PACKAGE: object, **others}.items()
            if not inspect.isclass(found) or not any(
                f"{found.__module__}.".startswith(module) and issubclass(found, of) for module, of in allowed
            ):
                raise UserError(f"{where} names {name}, which is not a class of this project: it was not built")
            if not issubclass(found, kind):
                raise UserError(f"{where} describes a {found.__name__}, where a {kind.__name__} belongs: it was not built")
        for value in node.values():
            _check_targets(value, where, others=others)
    elif isinstance(node, list):
        for value in node:
            _check_targets(value, where, others=others)


def _known_object(name: str, modules: tuple[str, ...]) -> object:
    if not name.startswith(modules):
        return None
    try:
        return get_object(name)
    except Exception:  # noqa: BLE001 - Hydra raises bare exceptions of several kinds here; none of them is a class of ours
        return None
