"""From a command line to a job with a composed config; what it refuses is said in one sentence."""

import json
import os
import sys
import traceback
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import hydra
from hydra.core.hydra_config import HydraConfig
from hydra.errors import HydraException
from hydra.experimental.callback import Callback
from omegaconf import DictConfig
from omegaconf.errors import OmegaConfBaseException

from unet_diffusion.errors import UserError, printable
from unet_diffusion.mistakes import explain, flat
from unet_diffusion.runs import remove_if_empty, unique_name

SWEEP_ID = "UNET_DIFFUSION_SWEEP"  # read by conf/train.yaml
SWEEP_DIR = "UNET_DIFFUSION_SWEEP_DIR"
"""Environment variable with the folder of the running sweep, read by conf/train.yaml: a job that changes `name` keeps it."""
_BAD_INPUT = 2


def run_script(job: Callable[[DictConfig], Any], config: Path, open_groups: Sequence[str] = ()) -> None:
    """Runs `job` with the config file composed under the command line's overrides; exits with status 2 on bad input.

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
    os.environ.pop(SWEEP_DIR, None)
    os.environ[SWEEP_ID] = f"{unique_name()}-sweep"
    refused: list[UserError] = []
    composed = False

    def guarded(cfg: DictConfig) -> Any:
        nonlocal composed
        composed = True
        try:
            return job(cfg)
        except (UserError, OmegaConfBaseException) as raised:
            error = raised if isinstance(raised, UserError) else UserError(flat(raised))
            refused.append(error)
            if debug:
                traceback.print_exc()
            else:
                _say(f"job {HydraConfig.get().job.num}: {error}" if is_sweep_job() else str(error))
            return None  # to Hydra the job is over: a sweep goes on with its others

    main = hydra.main(version_base="1.3", config_path=str(config.parent), config_name=config.stem)(guarded)
    try:
        main()
    except Exception as error:
        if composed and not isinstance(error, (HydraException, OmegaConfBaseException)):
            raise  # a bug of ours; before, whatever Hydra raises (it has bare ValueErrors too) is about what was typed
        refused.append(UserError(explain(error, sys.argv[1:], config)))
        if debug:
            traceback.print_exc()
        else:
            _say(str(refused[-1]))
    if refused:
        SweepFolder.remove_if_empty()
        sys.exit(_BAD_INPUT)


class SweepFolder(Callback):
    """Hydra's folder for a sweep: listed at its end, and not left behind where no job ran."""

    path: Path | None = None

    def on_multirun_start(self, config: DictConfig, **kwargs: Any) -> None:
        SweepFolder.path = Path(config.hydra.sweep.dir).expanduser().absolute()
        os.environ[SWEEP_DIR] = str(SweepFolder.path)

    def on_multirun_end(self, config: DictConfig, **kwargs: Any) -> None:
        """Lists the jobs with their test scores."""
        folder = Path(config.hydra.sweep.dir)
        done = [(file.parent, json.loads(file.read_text())["scores"]) for file in sorted(folder.glob("*/metrics.json"))]
        if done:
            print(f"\nTest scores of the {len(done)} jobs in {folder}:")
        for path, scores in done:
            print(f"  {path.name:<50} MSE {scores['test/mse']:.4f}   PSNR {scores['test/psnr']:.2f} dB")

    @classmethod
    def remove_if_empty(cls) -> None:
        """Removes the sweep's folder where it holds nothing but Hydra's note of what was typed."""
        if cls.path is not None and cls.path.is_dir() and {p.name for p in cls.path.iterdir()} <= {"multirun.yaml"}:
            (cls.path / "multirun.yaml").unlink(missing_ok=True)
            cls.path.rmdir()
            remove_if_empty(cls.path.parent)


def is_sweep_job() -> bool:
    """Whether this Hydra job is one of a multirun's."""
    mode = HydraConfig.get().mode
    return mode is not None and mode.name == "MULTIRUN"


def _say(sentence: str) -> None:
    print(f"error: {printable(sentence)}", file=sys.stderr)
