"""A sweep's folder: made or gone on with, where each of its jobs goes, which are done and which failed.

multirun.yaml     Hydra's note of what was typed
000-...           a run folder for each job
failures.jsonl    a line for each job that failed
optuna.db         with sweep=optuna: the study
"""

import json
import logging
import re
import sys
import zlib
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, ClassVar, NoReturn

import yaml
from hydra.core.hydra_config import HydraConfig
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.experimental.callback import Callback
from omegaconf import DictConfig, OmegaConf, open_dict, read_write

from unet_diffusion.evaluation.records import final_scores
from unet_diffusion.runs import remove_if_empty
from unet_diffusion.saved_config import plain_yaml

_NOTE = "multirun.yaml"
_FAILURES = "failures.jsonl"
_OWN = {_NOTE, _FAILURES, "optuna.db", "optimization_results.yaml"}
_LONGEST = 80


@dataclass(frozen=True)
class Failure:
    """A job that came to nothing."""

    job: int
    """Its number in the sweep."""
    words: str
    """What it had that not all jobs of the sweep have."""
    error: str
    """One sentence."""
    bug: bool
    """It is no mistake in what was typed."""

    def __str__(self) -> str:
        return f"job {self.job}{f' ({self.words})' if self.words else ''}: {self.error}"


class SweepFolder(Callback):
    """Hydra's callback of train.py for `-m`: makes the folder or goes on in `sweep_dir`, and lists what came of it."""

    path: ClassVar[Path | None] = None
    """The folder of the sweep that this process runs."""
    made: ClassVar[bool] = False
    """Whether this process has made it."""

    @classmethod
    def forget(cls) -> None:
        """Before a process's next script."""
        cls.path, cls.made = None, False

    def on_multirun_start(self, config: DictConfig, **kwargs: Any) -> None:
        """Makes the folder, or finds out what is left to do in it; tells the jobs where it is.

        An error leaves the process from here, as Hydra would make a warning of it.
        """
        asked = config.get("sweep_dir")
        folder = Path(str(asked or config.hydra.sweep.dir)).expanduser().absolute()
        if asked and folder.exists() and not (folder / _NOTE).is_file() and (folder.is_file() or any(folder.iterdir())):
            _refuse(f"sweep_dir={asked} is no sweep's folder (it has no {_NOTE}): name that of a sweep, or a new one")
        SweepFolder.made = not folder.exists()
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            _refuse(f"the folder for the runs cannot be made ({error}): name another {'sweep_dir' if asked else 'output_dir'}")
        going_on = (folder / _NOTE).is_file()
        quoted = str(folder).replace("\\", "\\\\").replace("'", "\\'")
        with read_write(config), open_dict(config):
            config.hydra.sweep.dir = str(folder)
            config.hydra.overrides.hydra.append(f"hydra.sweep.dir='{quoted}'")  # every job is composed with these anew
            if going_on:
                done = len(list(folder.glob("*/metrics.json")))
                print(f"Going on with the sweep in {folder}: {done} of its jobs are finished.")
                (folder / _FAILURES).unlink(missing_ok=True)
                if config.hydra.sweeper.get("storage"):
                    from unet_diffusion.training.pruning import go_on_with_study  # needs optuna, which is an extra

                    go_on_with_study(config.hydra.sweeper)
        logging.getLogger("alembic").setLevel(logging.WARNING)  # seven lines about itself, for a study's database
        OmegaConf.save(config, folder / _NOTE)  # Optuna's sweeper writes none
        SweepFolder.path = folder

    def on_multirun_end(self, config: DictConfig, **kwargs: Any) -> None:
        """Lists the finished jobs with their scores."""
        assert self.path is not None
        done = [(file.parent, final_scores(file.parent)) for file in sorted(self.path.glob("*/metrics.json"))]
        if done:
            print(f"\nScores of the {len(done)} jobs in {self.path}:")
        name = str(config.optimized_metric)
        for path, scores in done:
            optimized = f"{name} {scores[name]:.4f}   " if name in scores and name not in ("test/mse", "test/psnr") else ""
            print(f"  {path.name:<50} {optimized}test MSE {scores['test/mse']:.4f}   PSNR {scores['test/psnr']:.2f} dB")

    @classmethod
    def failures(cls) -> list[Failure]:
        """The jobs that failed, in whichever process they ran."""
        file = None if cls.path is None else cls.path / _FAILURES
        return [Failure(**json.loads(line)) for line in file.read_text().splitlines()] if file and file.is_file() else []

    @classmethod
    def remove_if_empty(cls) -> None:
        """Removes the sweep's folder, if it is new and no job left anything in it."""
        if cls.path is not None and cls.made and cls.path.is_dir() and {p.name for p in cls.path.iterdir()} <= _OWN:
            for name in _OWN:
                (cls.path / name).unlink(missing_ok=True)
            cls.path.rmdir()
            remove_if_empty(cls.path.parent)


class NoSweepNote(Callback):
    """Removes Hydra's note of what was typed for a sweep (multirun.yaml), of scripts that have no folder for sweeps."""

    note: Path | None = None

    def on_multirun_start(self, config: DictConfig, **kwargs: Any) -> None:
        NoSweepNote.note = Path(config.hydra.sweep.dir).absolute() / "multirun.yaml"

    @classmethod
    def remove(cls) -> None:
        if cls.note is not None:
            cls.note.unlink(missing_ok=True)


def is_sweep_job() -> bool:
    """Whether this Hydra job is one of a multirun's."""
    mode = HydraConfig.get().mode
    return mode is not None and mode.name == "MULTIRUN"


def failed_job(error: str, bug: bool) -> Failure:
    """This job of a multirun as a failed one; written down where the sweep has a folder."""
    job = HydraConfig.get()
    failure = Failure(int(job.job.num), " ".join(varying_words()), error, bug)
    if "sweep_folder" in (job.callbacks or {}):
        with (Path(job.sweep.dir) / _FAILURES).open("a") as stream:
            stream.write(json.dumps(asdict(failure)) + "\n")
    return failure


def varying_words() -> list[str]:
    """What was typed for this job of a multirun, less what is the same for all of its sweep."""
    job = HydraConfig.get()
    note = Path(job.sweep.dir) / _NOTE
    typed = OverridesParser.create().parse_overrides(list(OmegaConf.load(note).hydra.overrides.task) if note.is_file() else [])
    # in Hydra's spelling, which is that of a job's words: 1e-3 is 0.001 there
    constant = {f"{one.get_key_element()}={one.get_value_element_as_str()}" for one in typed if not one.is_sweep_override()}
    return [word for word in job.overrides.task if word not in constant]


def job_folder(typed: Sequence[str]) -> Path:
    """Where the run of this job of a sweep goes: the folder with its overrides where there is one, else a new, numbered one.

    The former is finished, or was left by a sweep that ended before it did, or by this very job, which a cluster has stopped
    and started again; what another job of a sweep that still runs is doing, it leaves alone.
    """
    job = HydraConfig.get()
    folder = Path(job.sweep.dir)
    started = (folder / _NOTE).stat().st_mtime
    for file in sorted(folder.glob("*/overrides.yaml")):
        left = file.stat().st_mtime < started or file.parent.name.partition("-")[0] == f"{int(job.job.num):03d}"
        if sorted(typed) == typed_for(file.parent) and (is_finished(file.parent) or left):
            return file.parent
    taken = {path.name.partition("-")[0] for path in folder.iterdir() if path.is_dir()}
    number = int(job.job.num)
    while f"{number:03d}" in taken:
        number += 1
    words = "_".join(varying_words())
    name = re.sub(r"[^\w.-]", "-", words)
    if len(name) > _LONGEST:
        name = f"{name[:_LONGEST]}-{zlib.crc32(words.encode()):08x}"  # two that are cut short must not be alike
    return folder / f"{number:03d}-{name}".rstrip("-")


def is_finished(run: Path) -> bool:
    """Whether a run folder holds its final scores."""
    return (run / "metrics.json").is_file()


def typed_for(run: Path) -> list[str]:
    """The words that a run was started with, in order of the alphabet."""
    try:
        return sorted(plain_yaml(run / "overrides.yaml", references=True) or [])
    except (OSError, TypeError, ValueError, yaml.YAMLError):  # cut short by a kill
        return ["?"]


def _refuse(sentence: str) -> NoReturn:
    print(f"error: {sentence}", file=sys.stderr)
    sys.exit(2)
