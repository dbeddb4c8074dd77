"""From a command line to a composed config, and from a mistake in it to one clear sentence."""

import contextlib
import difflib
import os
import secrets
import sys
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import hydra
from hydra import compose, initialize_config_dir
from hydra.core.global_hydra import GlobalHydra
from hydra.core.hydra_config import HydraConfig
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override
from hydra.errors import HydraException, OverrideParseException
from hydra.experimental.callback import Callback
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from unet_diffusion.errors import UserError

SWEEP_ID = "UNET_DIFFUSION_SWEEP"  # read by conf/train.yaml
_BAD_INPUT = 2


def run_script(job: Callable[[DictConfig], Any], config: Path, open_groups: Sequence[str] = ()) -> None:
    """Runs `job` with the config file composed under the command line's overrides; exits with status 2 on bad input.

    Args:
        job: the script's work; its return value is Hydra's (the figure that a sweeper optimizes).
        config: the primary config, such as conf/train.yaml.
        open_groups: groups whose keys are known only when the job runs (those of the run that it opens); any may be given.
    """
    sys.argv[1:] = [
        f"++{word}" if word.startswith(tuple(f"{group}." for group in open_groups)) else word for word in sys.argv[1:]
    ]
    sys.argv[1:] = sorted(sys.argv[1:], key=lambda word: word not in ("-m", "--multirun"))  # Hydra wants it before the keys
    debug = "debug=true" in (argument.lower() for argument in sys.argv[1:])
    os.environ["HYDRA_FULL_ERROR"] = "1"  # Hydra is to raise its errors, so that they can be said in our own words here
    os.environ[SWEEP_ID] = f"{time.strftime('%Y%m%d-%H%M%S')}-{secrets.token_hex(3)}-sweep"
    refused: list[UserError] = []
    composed = False

    def guarded(cfg: DictConfig) -> Any:
        nonlocal composed
        composed = True
        try:
            return job(cfg)
        except (UserError, OmegaConfBaseException) as raised:
            error = raised if isinstance(raised, UserError) else UserError(_flat(raised))
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
        refused.append(UserError(explain(error, _overrides(sys.argv[1:]), config)))
        if debug:
            traceback.print_exc()
        else:
            _say(str(refused[-1]))
    if refused:
        SweepFolder.remove_if_empty()
        sys.exit(_BAD_INPUT)


class SweepFolder(Callback):
    """Remembers which folder Hydra makes for a sweep, so that one in which no job ran is not left behind."""

    path: Path | None = None

    def on_multirun_start(self, config: DictConfig, **kwargs: Any) -> None:
        SweepFolder.path = Path(config.hydra.sweep.dir)

    @classmethod
    def remove_if_empty(cls) -> None:
        """Removes the sweep's folder where it holds nothing but Hydra's note of what was typed."""
        if cls.path is not None and cls.path.is_dir() and {p.name for p in cls.path.iterdir()} <= {"multirun.yaml"}:
            (cls.path / "multirun.yaml").unlink(missing_ok=True)
            for folder in (cls.path, *cls.path.parents[:2]):
                with contextlib.suppress(OSError):
                    folder.rmdir()  # only where it is empty


def explain(error: Exception, overrides: list[str], config: Path) -> str:
    """What is wrong with the overrides, in one sentence that suggests near keys or choices."""
    if isinstance(error, OverrideParseException):
        return f"{error.override!r} cannot be read as key=value: put quotes around values with special characters"
    if isinstance(error, OSError) and not isinstance(error, HydraException):
        return f"the folder for the runs cannot be made ({error}): name another output_dir"
    try:
        parsed = OverridesParser.create().parse_overrides(overrides)
        with initialize_config_dir(str(config.parent.resolve()), version_base="1.3"):
            return _explain_override(parsed, config) or _flat(error)
    except (HydraException, OmegaConfBaseException):
        return _flat(error)
    finally:
        GlobalHydra.instance().clear()


def _explain_override(overrides: list[Override], config: Path) -> str | None:
    choices = {override.key_or_group: override for override in overrides if (config.parent / override.key_or_group).is_dir()}
    good = []
    for group, override in choices.items():
        options = sorted(file.stem for file in (config.parent / group).glob("*.yaml"))
        for value in _values(override):
            if value not in options:
                near = _near(value, options)
                return f"{group}={value} is not there: choose one of {', '.join(options)}{near}"
            good.append(f"{group}={value}")
    known = _keys(compose(config.stem, overrides=list(dict.fromkeys(good))))
    for override in overrides:
        key = override.key_or_group
        if key in choices or override.is_add() or override.is_force_add() or key.startswith("hydra"):
            continue
        if key not in known:
            groups = [entry.name for entry in config.parent.iterdir() if entry.is_dir()]
            near = _near(key, [*known, *groups]) or "; `--cfg job` lists the keys"
            return f"there is no key {key}{near}"
    return None


def _near(word: str, known: list[str]) -> str:
    close = difflib.get_close_matches(word, known, n=3, cutoff=0.6)
    last = word.rpartition(".")[2]
    close += [key for key in known if key.rpartition(".")[2] == last and key not in close][: 3 - len(close)]
    return f"; did you mean {' or '.join(dict.fromkeys(close))}?" if close else ""


def _values(override: Override) -> list[str]:
    if override.is_sweep_override():
        return [str(value) for value in override.sweep_string_iterator()]
    value = override.value()
    return [] if value is None else [str(value)]


def _keys(cfg: DictConfig, prefix: str = "") -> list[str]:
    return list(_walk(OmegaConf.to_container(cfg, resolve=False), prefix))


def _walk(node: Any, prefix: str) -> Iterator[str]:
    if isinstance(node, dict):
        for key, value in node.items():
            yield f"{prefix}{key}"
            yield from _walk(value, f"{prefix}{key}.")


def _overrides(arguments: list[str]) -> list[str]:
    return [argument for argument in arguments if "=" in argument and not argument.startswith("-")]


def is_sweep_job() -> bool:
    """Whether this Hydra job is one of a multirun's."""
    mode = HydraConfig.get().mode
    return mode is not None and mode.name == "MULTIRUN"


def _flat(error: Exception) -> str:
    text = str(error) or str(error.__cause__ or type(error).__name__)
    return " ".join(line.strip() for line in text.splitlines() if line.strip())


def _say(sentence: str) -> None:
    print(f"error: {sentence}", file=sys.stderr)
