"""What a fuzz case is, and what it may work with."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from random import Random

MARK = "code-was-run"
"""A file of this name appears where something that was only to be read was run."""
RUNS = ("lesson", "generator")
"""The runs in every case's folder: a blind network with a distance scored, and one with classes and an average."""


@dataclass(frozen=True)
class Case:
    """One command, in a folder of its own that was prepared for it."""

    script: str
    arguments: Sequence[str]


@dataclass(frozen=True)
class Materials:
    """What cases are made from, the same for all."""

    folder: Path
    """Holds the runs, as `runs/<name>`."""
    keys: dict[str, list[str]]
    """Every key and group of each script's config."""
    choices: dict[str, list[str]]
    """The choices of each group."""


def pick_some(rng: Random, items: Sequence[str], most: int) -> list[str]:
    return rng.sample(list(items), min(len(items), rng.randint(1, most)))
