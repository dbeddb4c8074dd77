"""The script boundary: composes the config, calls a function, and prints errors on one line."""

import contextlib
import difflib
import inspect
import io
import os
import pkgutil
import re
import signal
import sys
import traceback
from collections.abc import Callable, Iterator, Sequence
from typing import Any

signal.signal(signal.SIGINT, signal.SIG_DFL)  # no traceback of Ctrl-C, also in the imports below

import hydra
from hydra import compose, initialize_config_dir
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.errors import HydraException, MissingConfigException, OverrideParseException
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.fabric.utilities.rank_zero import rank_zero_only
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import MissingMandatoryValue, OmegaConfBaseException
from pydantic import ValidationError
from torch.distributed import is_torchelastic_launched

from unet_diffusion.config import CONF, check_config, describe, is_sweep_job, other_choices
from unet_diffusion.runs import command_line, unique_name
from unet_diffusion.training.sweeps import report_failure

USER_ERRORS = (
    ValueError,
    OSError,
    ModuleNotFoundError,
    HydraException,
    OmegaConfBaseException,
    MisconfigurationException,
)
"""Errors that are printed on one line, with exit status 2; all others keep their traceback."""
COMMANDS = {
    "train": "unet_diffusion.training.train:train",
    "sample": "unet_diffusion.generation.sample:sample",
    "denoise": "unet_diffusion.generation.denoise:denoise",
    "evaluate": "unet_diffusion.evaluation.evaluate:evaluate",
    "report": "unet_diffusion.evaluation.report:report",
    "export": "unet_diffusion.generation.export:export",
    "playground": "unet_diffusion.playground:playground",
    "train_features": "unet_diffusion.evaluation.feature_extractor:train_features",
    "benchmark": "unet_diffusion.benchmarks.cases:benchmark",
}
"""The functions of scripts/, for the command `unet-diffusion`."""
OPEN_GROUPS = {"sample": ["sampler"], "evaluate": ["sampler", "data"]}
"""Config groups that accept keys that are not in conf/: those of the run that is opened."""


def main() -> None:
    """`unet-diffusion <command> [key=value]` is `python scripts/<command>.py [key=value]`."""
    # Lightning starts further processes with the overrides alone.
    is_command = len(sys.argv) > 1 and sys.argv[1] in COMMANDS
    command = sys.argv.pop(1) if is_command else os.environ.get("UNET_DIFFUSION_COMMAND", "")
    if command not in COMMANDS:
        usage = f"unet-diffusion <command> [key=value], with one of {', '.join(COMMANDS)}"
        if sys.argv[1:] in ([], ["--help"], ["-h"]):
            print(usage)
            sys.exit()
        print(f"error: no command '{sys.argv[1]}'. Usage: {usage}", file=sys.stderr)
        sys.exit(2)
    run_script(command)


def run_script(command: str) -> None:
    """Calls the function of a command with the config that Hydra composes from the command line.

    A function with the single parameter `cfg` gets the config; others get its keys as arguments.
    In a sweep, a failed job is reported and the others run. Of several processes, only the first
    prints. Exits with status 2 for invalid input, and with 1 if a job failed.
    """
    open_groups = OPEN_GROUPS.get(command, [])
    sys.argv[1:] = [_hydra_override(arg, open_groups) for arg in sys.argv[1:]]
    os.environ["UNET_DIFFUSION_COMMAND"] = command
    os.environ["UNET_DIFFUSION_COMMAND_LINE"] = command_line(command)
    multirun = bool({"-m", "--multirun"} & set(sys.argv[1:]))
    debug = "debug=true" in [arg.lower() for arg in sys.argv[1:]]
    os.environ["HYDRA_FULL_ERROR"] = "1"  # Hydra raises its errors instead of printing them
    os.environ["UNET_DIFFUSION_SWEEP_ID"] = f"{unique_name()}-sweep"
    raised: list[Exception] = []

    def job(cfg: DictConfig) -> Any:
        try:
            return _call(pkgutil.resolve_name(COMMANDS[command]), cfg)
        except Exception as error:  # noqa: BLE001 - Hydra would print its own lines, and stop a sweep
            if is_sweep_job():
                if debug or not isinstance(error, USER_ERRORS):
                    traceback.print_exc()
                report_failure(explain(error))
            else:
                raised.append(error)
            return None

    try:
        if is_torchelastic_launched() and multirun:
            raise ValueError("-m: not available with torchrun, every process would run the sweep.")
        if multirun and command == "train":
            _check_sweep(sys.argv[1:])
        is_first = rank_zero_only.rank == 0  # type: ignore[attr-defined]
        with contextlib.redirect_stdout(sys.stdout if is_first else io.StringIO()):
            hydra.main(version_base="1.3", config_path=str(CONF), config_name=command)(job)()
        if raised:
            raise raised[0]
    except USER_ERRORS as error:
        if debug:
            traceback.print_exc()
        print(f"error: {explain(error)}", file=sys.stderr)
        sys.exit(2)


def _check_sweep(arguments: Sequence[str]) -> None:
    """Checks the config of each swept value before the first job trains for minutes."""
    overrides = [arg for arg in arguments if "=" in arg and not arg.startswith("-")]
    parsed = OverridesParser.create().parse_overrides(overrides)
    fixed = [str(each.input_line) for each in parsed if not each.is_sweep_override()]
    swept = {
        each.get_key_element(): list(each.sweep_string_iterator())
        for each in parsed
        if each.is_discrete_sweep()
    }
    first = {key: f"{key}={values[0]}" for key, values in swept.items()}
    with initialize_config_dir(str(CONF), version_base="1.3"):
        for key, values in swept.items():
            if "null" in values and (CONF / key).is_dir():
                raise ValueError(f"{key}=null: not possible in a sweep (-m) over {key}.")
            for value in values:
                job = {**first, key: f"{key}={value}"}
                with contextlib.suppress(HydraException):  # Hydra reports these itself
                    check_config(compose("train", [*fixed, *job.values()]))


def _hydra_override(arg: str, open_groups: Sequence[str]) -> str:
    """Rewrites group=null, group=<number> and keys of an opened run in Hydra's syntax."""
    key, equals, value = arg.partition("=")
    if equals and key.isidentifier() and (CONF / key).is_dir():
        if value == "null":
            return f"~{key}"
        return f"{key}='{value}'" if re.fullmatch(r"[\d.]+", value) else arg
    return f"++{arg}" if arg.startswith(tuple(f"{group}." for group in open_groups)) else arg


def _call(function: Callable[..., Any], cfg: DictConfig) -> Any:
    if "cfg" in inspect.signature(function).parameters:
        return function(cfg)
    arguments: Any = OmegaConf.to_container(cfg, resolve=True, throw_on_missing=True)
    del arguments["debug"]
    return function(**arguments)


def explain(error: BaseException) -> str:
    """An error on one line: key, value, what is allowed, and the nearest key or choice."""
    if isinstance(error, ValidationError):
        return describe(error)
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
    return text if isinstance(error, USER_ERRORS) else f"{type(error).__name__}: {text}"


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
