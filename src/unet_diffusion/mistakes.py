"""A mistake on the command line, explained: which key or choice is wrong, and what is near it."""

import difflib
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from hydra import compose, initialize_config_dir
from hydra.core.global_hydra import GlobalHydra
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override
from hydra.errors import HydraException, OverrideParseException
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

_EXTRAS = re.compile(r"hydra/(?:launcher|sweeper)/(joblib|submitit_local|submitit_slurm|optuna)")


def explain(error: Exception, arguments: list[str], config: Path) -> str:
    """One sentence for an error that Hydra raised while it composed a config; suggests near keys or choices.

    Args:
        error: what Hydra raised.
        arguments: the words of the command line.
        config: the primary config, such as conf/train.yaml; the groups are the folders beside it.
    """
    if isinstance(error, OverrideParseException):
        return f"{error.override!r} cannot be read as key=value: put quotes around values with special characters"
    if isinstance(error, OSError) and not isinstance(error, HydraException):
        return f"the folder for the runs cannot be made ({error}): name another output_dir"
    if lacking := _EXTRAS.search(str(error)):
        return f"{lacking[0]} is not installed: type pip install -e '.[sweeps]'"
    try:
        parsed = OverridesParser.create().parse_overrides(
            [word for word in arguments if "=" in word and not word.startswith("-")]
        )
        with initialize_config_dir(str(config.parent.resolve()), version_base="1.3"):
            return _explain_override(parsed, config) or flat(error)
    except (HydraException, OmegaConfBaseException):
        return flat(error)
    except ValueError as cause:  # Hydra's parser lets some through, of numbers with thousands of digits and the like
        return f"the command line cannot be read: {flat(cause)}"
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
    defaults = compose(config.stem, overrides=list(dict.fromkeys(good)))
    known = list(_keys(OmegaConf.to_container(defaults, resolve=False)))
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
    return ["null" if value is None else str(value)]


def _keys(node: Any, prefix: str = "") -> Iterator[str]:
    if isinstance(node, dict):
        for key, value in node.items():
            yield f"{prefix}{key}"
            yield from _keys(value, f"{prefix}{key}.")


def flat(error: Exception) -> str:
    """An error's text on one line; its cause's or its type where it has none."""
    text = str(error) or str(error.__cause__ or type(error).__name__)
    return " ".join(line.strip() for line in text.splitlines() if line.strip())
