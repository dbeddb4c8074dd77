"""From a command line to a job with a composed config; what it refuses is said in one sentence."""

import gc
import os
import sys
import traceback
from collections.abc import Callable, Sequence
from contextlib import nullcontext, redirect_stdout
from pathlib import Path
from typing import Any

import hydra
from hydra.errors import HydraException
from lightning.fabric.utilities.rank_zero import rank_zero_only
from omegaconf import DictConfig
from omegaconf.errors import OmegaConfBaseException
from torch.distributed import is_torchelastic_launched

from unet_diffusion.errors import UserError, printable
from unet_diffusion.mistakes import explain, flat
from unet_diffusion.runs import unique_name
from unet_diffusion.sweeps import Failure, NoSweepNote, SweepFolder, failed_job, is_sweep_job

__all__ = ["is_sweep_job", "run_script"]

SWEEP_ID = "UNET_DIFFUSION_SWEEP"  # read by conf/train.yaml
_NONE_SUCCEEDED = ("No trials are completed yet.", "Record does not exist.")  # Optuna's words, with and without a storage
_BUG = 1
_BAD_INPUT = 2


def run_script(job: Callable[[DictConfig], Any], config: Path, open_groups: Sequence[str] = ()) -> None:
    """Runs `job` with the config file composed under the command line's overrides.

    Exits with status 2 on bad input. In a sweep, a job that fails is reported and the others go on; the status is 1 in the end
    where one of them met a bug.

    Of several processes at one job only the first says what it does; all of them say what is wrong.

    Args:
        job: the script's work; its return value is Hydra's (the figure that a sweeper optimizes).
        config: the primary config, such as conf/train.yaml.
        open_groups: groups whose keys are known only when the job runs (those of the run that it opens); any may be given.
    """
    open_keys = tuple(f"{group}." for group in open_groups)
    sys.argv[1:] = [f"++{word}" if word.startswith(open_keys) else word for word in sys.argv[1:]]
    sys.argv[1:] = sorted(sys.argv[1:], key=lambda word: word not in ("-m", "--multirun"))  # Hydra wants it before the keys
    debug = "debug=true" in (argument.lower() for argument in sys.argv[1:])
    os.environ["HYDRA_FULL_ERROR"] = "1"  # Hydra is to raise its errors, so that they can be said in our own words here
    os.environ[SWEEP_ID] = f"{unique_name()}-sweep"
    if is_torchelastic_launched() and {"-m", "--multirun"} & set(sys.argv[1:]):
        _say("-m does not go with torchrun, as each process would run the whole sweep: run its jobs one at a time, without -m")
        sys.exit(_BAD_INPUT)
    SweepFolder.forget()
    if any(word.startswith("--experimental-rerun") for word in sys.argv[1:]):
        _say("--experimental-rerun would run code that came in a file: type the words in overrides.yaml of the run again")
        sys.exit(_BAD_INPUT)
    refused: list[UserError] = []
    failed: list[Failure] = []
    composed = False

    def guarded(cfg: DictConfig) -> Any:
        nonlocal composed
        composed = True
        try:
            return job(cfg)
        except Exception as raised:
            bug = not isinstance(raised, (UserError, OmegaConfBaseException))
            if bug and not is_sweep_job():
                raise
            if debug or bug:
                traceback.print_exc()
            if is_sweep_job():
                failed.append(failed_job(f"{type(raised).__name__}: {flat(raised)}" if bug else flat(raised), bug))
                _say(str(failed[-1]))
            else:
                refused.append(UserError(flat(raised)))
                _say(str(refused[-1]))
            return None  # to Hydra the job is over: a sweep goes on with its others, and Optuna counts a trial as failed
        finally:
            if is_sweep_job():
                gc.collect()  # a trainer is a knot of references; its weights and open files would stay until Python's own turn

    main = hydra.main(version_base="1.3", config_path=str(config.parent), config_name=config.stem)(guarded)
    gc.freeze()  # what is imported stays: no collection need look at it, which makes one between two jobs short
    try:
        with Path(os.devnull).open("w") if _process() else nullcontext(sys.stdout) as out, redirect_stdout(out):
            main()
    except Exception as error:
        nothing_succeeded = str(error) in _NONE_SUCCEEDED
        if composed and not isinstance(error, (HydraException, OmegaConfBaseException)) and not nothing_succeeded:
            raise  # a bug of ours; before, whatever Hydra raises (it has bare ValueErrors too) is about what was typed
        if debug:
            traceback.print_exc()
        sentence = "none of the study's trials succeeded" if nothing_succeeded else explain(error, sys.argv[1:], config)
        refused.append(UserError(sentence))
        _say(sentence)
    except (KeyboardInterrupt, SystemExit):
        if SweepFolder.path is not None:
            _say(f"the sweep was interrupted: {_going_on(SweepFolder.path)}")
        raise
    finally:
        gc.unfreeze()
        NoSweepNote.remove()
    _sum_up(failed)
    if refused or failed:
        sys.exit(_BUG if any(one.bug for one in failed) else _BAD_INPUT)


def _sum_up(failed: list[Failure]) -> None:
    """After a sweep, says which jobs failed; adds those that ran in a launcher's processes, whose words may not show here."""
    for one in SweepFolder.failures():
        if one not in failed:
            failed.append(one)
            _say(str(one))
    SweepFolder.remove_if_empty()
    if len(failed) > 1 and SweepFolder.path is not None and SweepFolder.path.is_dir():
        listed = ", ".join(f"{one.job} ({one.words})" if one.words else str(one.job) for one in failed)
        _say(f"{len(failed)} jobs of the sweep failed: {listed}; {_going_on(SweepFolder.path)}")


def _going_on(sweep: Path) -> str:
    return f"the same command with sweep_dir={os.path.relpath(sweep)} goes on with what is left"


def _process() -> int:
    """Which of several processes at one job this is, from 0 on, as torchrun, Slurm or Lightning numbered them."""
    return int(rank_zero_only.rank)  # type: ignore[attr-defined]  # set on the function itself


def _say(sentence: str) -> None:
    where = f" in process {process}" if (process := _process()) else ""
    print(f"error{where}: {printable(sentence)}", file=sys.stderr)
