"""A short fuzz; `python tests/fuzz.py` runs a long one."""

from pathlib import Path

import fuzz
import pytest


@pytest.mark.parametrize(
    ("target", "examples"),
    [(fuzz.override_lists, 4), (fuzz.image_files, 40), (fuzz.run_directories, 20)],
)
def test_malformed_input_gives_success_or_one_error(target, examples: int, short_run: Path):
    fuzz.fuzz(target, short_run, seed=0, examples=examples)
