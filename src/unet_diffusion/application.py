"""Runs a command with the config that Hydra composes, and prints errors on one line."""

import contextlib
import importlib
import io
import os
import sys
import traceback
from collections.abc import Sequence
from typing import Any

from hydra._internal.utils import _run_hydra, get_args_parser
from hydra.core.hydra_config import HydraConfig
from hydra.version import setbase
from lightning.fabric.utilities.rank_zero import rank_zero_only
from omegaconf import DictConfig
from torch.distributed import is_torchelastic_launched

from unet_diffusion.errors import UserError
from unet_diffusion.experiment.compose import (
    CONF,
    compose_resume,
    hydra_override,
    is_sweep_job,
    read_arguments,
    references,
)
from unet_diffusion.experiment.explain import USER_ERRORS, explain
from unet_diffusion.experiment.locations import unique_name
from unet_diffusion.experiment.schema import TrainConfig
from unet_diffusion.runs.printed_commands import command_line
from unet_diffusion.runs.run import Run
from unet_diffusion.sweeps import job_directory, report_failure

OPEN_GROUPS = {"sample": ["sampler"], "evaluate": ["sampler", "data"]}
"""Config groups that accept keys that are not in conf/: those of the run that is opened."""


def run(command: str, overrides: Sequence[str]) -> int:
    """Calls the function of a command with the arguments that Hydra composes; the exit status.

    The module in commands/ has a function of the same name, and the schema `Arguments` of its
    single parameter. In a sweep, a failed job is reported and the others run. Of several processes,
    only the first prints. The status is 2 for invalid input, and 1 if a job failed.
    """
    os.environ["UNET_DIFFUSION_COMMAND_LINE"] = command_line(command)
    os.environ["UNET_DIFFUSION_SWEEP_ID"] = f"{unique_name()}-sweep"
    os.environ["HYDRA_FULL_ERROR"] = "1"  # Hydra raises its errors instead of printing them
    for stream in (sys.stdout, sys.stderr):  # a file name that the terminal cannot show
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")
    debug = "debug=true" in [override.lower() for override in overrides]
    raised: list[Exception] = []
    keys: dict[str, str] = {}

    def job(cfg: DictConfig) -> Any:
        try:
            keys.update(references(cfg))
            module = importlib.import_module(f"unet_diffusion.commands.{command}")
            return getattr(module, command)(_arguments(cfg, module.Arguments))
        except Exception as error:  # noqa: BLE001 - Hydra would print its own lines, and stop a sweep
            if is_sweep_job():
                if debug or not isinstance(error, USER_ERRORS):
                    traceback.print_exc()
                report_failure(explain(error, keys))
            else:
                raised.append(error)
            return None

    # Hydra's public decorator reads sys.argv, where `group=null` would be an error.
    parser = get_args_parser()
    open_groups = OPEN_GROUPS.get(command, [])
    is_sweep = bool({"-m", "--multirun"} & set(overrides))
    setbase("1.3")
    try:
        arguments = [hydra_override(each, open_groups, is_sweep) for each in overrides]
        args = parser.parse_intermixed_args(arguments)
        if is_torchelastic_launched() and args.multirun:
            raise UserError("-m: not available with torchrun, every process would run the sweep.")
        is_first = rank_zero_only.rank == 0  # type: ignore[attr-defined]
        with contextlib.redirect_stdout(sys.stdout if is_first else io.StringIO()):
            _run_hydra(args, parser, job, config_path=str(CONF), config_name=command)
        if raised:
            raise raised[0]
    except USER_ERRORS as error:
        if debug:
            traceback.print_exc()
        print(f"error: {explain(error, keys)}", file=sys.stderr)
        return 2
    return 0


def _arguments(cfg: DictConfig, schema: type[Any]) -> Any:
    """The checked arguments of a command; those of train.py know the run directory of a job."""
    if not issubclass(schema, TrainConfig):
        return read_arguments(cfg, schema)
    if cfg.resume is not None and not is_sweep_job():
        choices = Run.open(str(cfg.resume), key="resume").choices
        overrides = [str(override) for override in HydraConfig.get().overrides.task]
        cfg = compose_resume(choices, overrides)
    arguments = read_arguments(cfg, schema)
    directory = job_directory() if is_sweep_job() else None
    return arguments.model_copy(update={"sweep_job_dir": directory})
