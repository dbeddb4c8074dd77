"""Errors on one line: key, value, what is allowed, and the nearest key or choice."""

import difflib
import re
import shlex
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from hydra.errors import HydraException, MissingConfigException, OverrideParseException
from lightning.fabric.utilities.exceptions import MisconfigurationException
from omegaconf import DictConfig
from omegaconf.errors import MissingMandatoryValue, OmegaConfBaseException

from unet_diffusion.errors import UserError
from unet_diffusion.experiment.compose import CONF, other_choices

USER_ERRORS = (
    UserError,
    OSError,
    ModuleNotFoundError,
    HydraException,
    OmegaConfBaseException,
    MisconfigurationException,
)
"""Errors that are printed on one line, with exit status 2; all others keep their traceback."""


_EXTRAS = {
    **{"gradio": "playground", "datasets": "huggingface", "huggingface_hub": "hub"},
    **dict.fromkeys(("mlflow", "trackio", "wandb"), "loggers"),
    **dict.fromkeys(("onnx", "onnxruntime", "onnxscript"), "export"),
    **dict.fromkeys(("bm3d", "pywt", "skimage"), "baselines"),
    **{"torch_fidelity": "inception", "optuna": "sweeps"},
}
"""Extras of pyproject.toml by module."""
_OTHER_NAMES = {
    "device": "accelerator=gpu",
    "dataset": "data=fashion_mnist",
    "epochs": "trainer.max_epochs",
}


def explain(error: BaseException, references: Mapping[str, str] = {}) -> str:
    """An error on one line; `references` are keys whose value is that of another key."""
    text = _explain(error, references)
    return "".join(each if each.isprintable() else repr(each)[1:-1] for each in text)


def _explain(error: BaseException, references: Mapping[str, str]) -> str:
    if isinstance(error, OSError) and error.filename:
        return f"{error.filename}: {error.strerror}"
    if isinstance(error, ModuleNotFoundError) and error.name:
        return f"{error.name}: not installed. Run {_install_command(error.name)}."
    if isinstance(error, OverrideParseException):
        key, equals, value = str(error.override).partition("=")
        quoted = shlex.quote(f'{key}="{value}"')
        advice = f". Use {quoted}" if equals and value else ""
        return f"{error.override}: not key=value, or special characters without quotes{advice}."
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
    if str(error) == "Record does not exist.":  # Optuna's sweeper has no best trial
        return "All jobs of the sweep failed, see their errors above."
    text = " ".join(str(error).split()) or type(error).__name__
    if not isinstance(error, USER_ERRORS):
        return f"{type(error).__name__}: {text}"
    key, equals, rest = text.partition("=")
    return f"{references.get(key, key)}{equals}{rest}"


def _install_command(module: str) -> str:
    """The command that installs a module, with the others of its extra."""
    extra = _EXTRAS.get(module.partition(".")[0], module if module in _EXTRAS.values() else None)
    if extra is None:
        return f"pip install {module.partition('.')[0]}"
    is_clone = (CONF.parent / "pyproject.toml").is_file()
    return f"pip install -e '.[{extra}]'" if is_clone else f"pip install 'unet-diffusion[{extra}]'"


def _explain_choice(missing: str, options: list[str]) -> str:
    group, _, choice = missing.rpartition("/")
    if group in ("hydra/launcher", "hydra/sweeper"):
        return f"{group}={choice}: not installed. Run {_install_command('sweeps')}."
    choices = [option for option in options if option != "base"]
    if group == "noise" and choice.replace(".", "").isdigit():
        return f"noise={choice}: for the noise level, use noise.percent={choice}."
    return f"{group}={choice}: expected one of {', '.join(choices)}.{_suggest(choice, choices)}"


def _explain_key(key: str, error: BaseException) -> str:
    """Suggests keys of the composed config, which OmegaConf's error refers to."""
    if key in _OTHER_NAMES:
        return f"{key}: no such key. Did you mean {_OTHER_NAMES[key]}?"
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
