"""Interrupts real trainings: `python tests/faults.py kill --count 20`; also term and int.

Each round starts `scripts/train.py` in a separate process, sends it a signal at random moments from
the start to the exit (SIGKILL also while a checkpoint is written), starts the same command again
until it succeeds, and compares the run bit by bit with an uninterrupted one.
"""

import argparse
import csv
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import torch
from helpers import ROOT, scores

SIGNALS = {"kill": signal.SIGKILL, "term": signal.SIGTERM, "int": signal.SIGINT}
TRAINING = (
    "precision=fp32",
    "model.channels=[8,16,32]",
    "data.batch_size=64",
    "data.flip=true",
    "ema=default",
    "trainer.max_steps=30",
    "trainer.val_check_interval=4",
    "+trainer.limit_val_batches=1",
    "+trainer.limit_test_batches=1",
    "trainer.log_every_n_steps=3",
    "callbacks.previews.num_images=1",
    "callbacks.progress_bar.refresh_rate=0",
    "callbacks.model_summary.max_depth=0",
)
"""A checkpoint every four steps: much of the time is spent on writing them."""


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("signal", choices=SIGNALS)
    parser.add_argument("--count", type=int, default=20)
    arguments = parser.parse_args()
    equal = 0
    with tempfile.TemporaryDirectory() as folder:
        expected = Path(folder, "uninterrupted")
        started = time.perf_counter()
        start(expected).communicate()
        seconds = time.perf_counter() - started
        for number in range(arguments.count):
            run = Path(folder, "run")
            result = interrupt(expected, run, arguments.signal, 1 + number % 3, seconds)
            shutil.rmtree(run, ignore_errors=True)
            equal += result.startswith("equal")
            print(f"{arguments.signal} {number + 1}: {result}", flush=True)
    print(f"{equal} of {arguments.count} equal to the uninterrupted run")
    return int(equal < arguments.count)


def interrupt(expected: Path, run: Path, name: str, count: int, seconds: float) -> str:
    """One training with `count` interruptions, each within `seconds` of its start.

    Returns:
        `equal` and the steps at the interruptions, or what is different.
    """
    number, steps = SIGNALS[name], []
    for _ in range(count):
        process = start(run)
        checkpoint = run / "checkpoints" / "last.ckpt"
        time.sleep(random.uniform(0, seconds))
        if number == signal.SIGKILL and random.random() < 0.5:  # while a checkpoint is written
            while process.poll() is None and not list(run.glob("checkpoints/.*.ckpt-*")):
                pass
        process.send_signal(number)
        output, errors = process.communicate(timeout=300)
        # Before and after the training, Python's own handlers end the process.
        if process.returncode not in (0, -number, 128 + number):
            return f"exit status {process.returncode}: {output[-300:]} {errors[-300:]}"
        if process.returncode == 0 and not (run / "metrics.json").exists():
            return f"exit status 0 without scores: {output[-300:]} {errors[-300:]}"
        steps.append(torch.load(checkpoint)["global_step"] if checkpoint.exists() else 0)
    process = start(run)
    errors = process.communicate(timeout=300)[1]
    if process.returncode != 0:
        return f"not resumed after steps {steps}: {errors[-500:]}"
    different = differences(expected, run)
    return f"DIFFERENT {different} after steps {steps}" if different else f"equal, steps {steps}"


def start(run: Path) -> "subprocess.Popen[str]":
    """The training in a separate process."""
    environment = os.environ | {"OMP_NUM_THREADS": "1", "OMP_WAIT_POLICY": "PASSIVE"}
    script = str(ROOT / "scripts" / "train.py")
    command = [sys.executable, script, *TRAINING, f"run_dir={run}"]
    pipe = subprocess.PIPE
    return subprocess.Popen(command, env=environment, stdout=pipe, stderr=pipe, text=True)


def differences(expected: Path, run: Path) -> list[str]:
    """What the interruption has changed: checkpoint, scores or logged values."""
    a, b = (final_state(path) for path in (expected, run))
    found = [key for key in a if not is_equal(a[key], b[key])]
    found += ["metrics.json"] * (scores(expected) != scores(run))
    found += ["metrics.csv"] * (logged_rows(expected) != logged_rows(run))
    return found


def final_state(run: Path) -> dict[str, Any]:
    """The content of last.ckpt without times and paths."""
    content: dict[str, Any] = torch.load(run / "checkpoints" / "last.ckpt", weights_only=True)
    callbacks = content.pop("callbacks")
    best = next((state for state in callbacks.values() if state.get("monitor")), {})
    return content | {
        "best_model_score": best.get("best_model_score"),
        "datamodule": content.get("ImageDataModule"),
    }


def is_equal(a: Any, b: Any) -> bool:
    """Whether two parts of checkpoints are equal bit by bit."""
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(is_equal(a[key], b[key]) for key in a)
    if isinstance(a, list | tuple):
        return len(a) == len(b) and all(map(is_equal, a, b))
    return torch.equal(a, b) if isinstance(a, torch.Tensor) else bool(a == b)


def logged_rows(run: Path) -> list[dict[str, str]]:
    """The rows of metrics.csv without the test."""
    with (run / "metrics.csv").open(newline="") as stream:
        return [row for row in csv.DictReader(stream) if not row["test/mse"]]


if __name__ == "__main__":
    sys.exit(main())
