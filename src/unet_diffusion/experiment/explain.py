"""Errors on one line: key, value, what is allowed, and the nearest key or choice."""

import difflib
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from hydra.errors import HydraException, MissingConfigException, OverrideParseException
from lightning.fabric.utilities.exceptions import MisconfigurationException
from omegaconf import DictConfig
from omegaconf.errors import MissingMandatoryValue, OmegaConfBaseException

from unet_diffusion.errors import UserError
from unet_diffusion.experiment.compose import other_choices

USER_ERRORS = (
    UserError,
    OSError,
    ModuleNotFoundError,
    HydraException,
    OmegaConfBaseException,
    MisconfigurationException,
)
"""Errors that are printed on one line, with exit status 2; all others keep their traceback."""


def explain(error: BaseException, references: Mapping[str, str] = {}) -> str:
    """An error on one line; `references` are keys whose value is that of another key."""
    text = _explain(error, references)
    return "".join(each if each.isprintable() else repr(each)[1:-1] for each in text)


def _explain(error: BaseException, references: Mapping[str, str]) -> str:
    if isinstance(error, OSError) and error.filename:
        return f"{error.filename}: {error.strerror}"
    if isinstance(error, ModuleNotFoundError) and error.name:
        return f"{error.name}: not installed. Run pip install {error.name}."
    if isinstance(error, OverrideParseException):
        return f"{error.override}: not key=value. Quote values with special characters."
    if isinstance(error, MissingMandatoryValue):
        key = str(error).rpartition(": ")[2].partition("\n")[0]
        return f"{key}: required, see --help."
    if isinstance(error, MissingConfigException) and error.missing_cfg_file:
        return _explain_choice(str(error.missing_cfg_file), list(error.options or []))
    if match := re.match(r"Could not override '(?P<key>[^']+)'", str(error)):
        return _explain_key(match["key"], error)
    if match := re.match(r"Ambiguous value for argument '(?P<override>[^']+)'", str(error)):
        hint = "Use a point in a number (0.3), brackets for a list ([16,32]), and -m for a sweep."
        return f"{match['override']}: several values. {hint}"
    text = " ".join(str(error).split()) or type(error).__name__
    if not isinstance(error, USER_ERRORS):
        return f"{type(error).__name__}: {text}"
    key, equals, rest = text.partition("=")
    return f"{references.get(key, key)}{equals}{rest}"


def _explain_choice(missing: str, options: list[str]) -> str:
    group, _, choice = missing.rpartition("/")
    if group in ("hydra/launcher", "hydra/sweeper"):
        return f"{group}={choice}: not installed. Run pip install 'unet-diffusion[sweeps]'."
    choices = [option for option in options if option != "base"]
    if group == "noise" and choice.replace(".", "").isdigit():
        return f"noise={choice}: for the noise level, use noise.percent={choice}."
    return f"{group}={choice}: expected one of {', '.join(choices)}.{_suggest(choice, choices)}"


def _explain_key(key: str, error: BaseException) -> str:
    """Suggests keys of the composed config, which OmegaConf's error refers to."""
    if hint := other_choices(key):
        return f"{key}: no such key.{hint}"
    node = getattr(error.__cause__, "parent_node", None)
    known = list(_keys(node._get_root())) if node is not None else []
    same_end = [name for name in known if name.rpartition(".")[2] == key.rpartition(".")[2]]
    return f"{key}: no such key.{_suggest(key, known, same_end) or ' See --cfg job.'}"


def _suggest(word: str, known: list[str], first: Sequence[str] = ()) -> str:
    close = dict.fromkeys([*first, *difflib.get_close_matches(word, known, n=3)])
    return f" Did you mean {' or '.join(list(close)[:3])}?" if close else ""


def _keys(node: Any, prefix: str = "") -> Iterator[str]:
    """Dotted keys of a config."""
    if isinstance(node, DictConfig):
        for key in node:
            if key != "hydra":
                yield f"{prefix}{key!s}"
                yield from _keys(node._get_node(key), f"{prefix}{key!s}.")
