"""A short fuzz; `python tests/fuzz.py` does a long one."""

import subprocess
import sys

import pytest
from helpers import ROOT


@pytest.mark.slow
def test_malformed_input_ends_in_success_or_one_sentence():
    command = [sys.executable, str(ROOT / "tests" / "fuzz.py"), "--cases", "12", "--seed", "1"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stdout + done.stderr
