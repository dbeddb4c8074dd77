"""Faults, for real: `python tests/faults.py kill --times 20`, or term, writing, disk; what docs/reliability.md reports.

Each runs `scripts/train.py` in processes of its own, does the fault to it, lets it go on by `resume=`, and compares what
comes out with a run that nothing happened to. `disk` needs a small file system of its own: name a folder on one by --folder.
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
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

SCRIPT = Path(__file__).parents[1] / "scripts" / "train.py"
TRAINING = (
    "precision=fp32",
    "model=lesson_narrow",
    "data.batch_size=64",
    "data.flip=true",
    "averaging=ema",
    "trainer.max_steps=90",
    "trainer.val_check_interval=4",
    "+trainer.limit_val_batches=1",
    "trainer.log_every_n_steps=3",
    "+trainer.limit_test_batches=1",
    "callbacks.progress_bar.refresh_rate=0",
    "callbacks.model_summary.max_depth=0",
)
"""Two epochs, with a checkpoint every four steps: a good part of the time goes into writing them."""


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("fault", choices=FAULTS)
    parser.add_argument("--times", type=int, default=20)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--folder", type=Path, help="where to work; for disk: on a file system of about 20 MB")
    asked = parser.parse_args()
    failed = 0
    with tempfile.TemporaryDirectory(dir=asked.folder) as folder:
        for number in range(asked.times):
            said = FAULTS[asked.fault](Path(folder), random.Random(f"{asked.fault} {asked.seed} {number}"))
            failed += not said.startswith("equal")
            print(f"{asked.fault} {number + 1} of {asked.times}: {said}", flush=True)
    print(f"{asked.times - failed} of {asked.times} as if nothing had been")
    return int(failed > 0)


def kill(folder: Path, rng: random.Random) -> str:
    """`kill -9` at any moment, again and again until the training gets through."""
    return _interrupted(folder, rng, signal.SIGKILL)


def term(folder: Path, rng: random.Random) -> str:
    """SIGTERM at any moment."""
    return _interrupted(folder, rng, signal.SIGTERM)


def writing(folder: Path, rng: random.Random) -> str:
    """`kill -9` while a checkpoint is being written: in the very moment that its temporary file is there."""
    return _interrupted(folder, rng, signal.SIGKILL, when=_is_writing)


def disk(folder: Path, rng: random.Random) -> str:
    """The disk becomes full at any moment; room is made, and the training goes on."""
    whole = _whole(Path(tempfile.gettempdir()) / "faults-whole")
    run = folder / "runs" / "disk"
    shutil.rmtree(run, ignore_errors=True)
    process = _train("name=disk", cwd=folder)
    path = _found(run, process)
    _wait_for_checkpoint(path, process)
    time.sleep(rng.uniform(0, 1))
    filler = folder / "filler"
    _fill(filler)
    _, said = process.communicate(timeout=120)
    filler.unlink()
    if process.returncode != 2 or said.count("\n") != 1 or "cannot be written" not in said:
        return f"status {process.returncode}, said: {said[-300:]}"
    kept = _step(path)
    _resume(path, folder).communicate(timeout=120)
    return _compared(whole, path, f"full, with a checkpoint of step {kept}")


FAULTS: dict[str, Callable[[Path, random.Random], str]] = {"kill": kill, "term": term, "writing": writing, "disk": disk}


def _interrupted(folder: Path, rng: random.Random, number: signal.Signals, when: Callable[[Path], bool] | None = None) -> str:
    whole = _whole(folder)
    run = folder / "runs" / "cut"
    shutil.rmtree(run, ignore_errors=True)
    process = _train("name=cut", cwd=folder)
    path = _found(run, process)
    steps = []
    for _ in range(rng.choice([1, 2, 3])):
        if when is None:
            time.sleep(rng.uniform(0.0, 6.0))
        else:
            _wait_for_checkpoint(path, process)
            time.sleep(rng.uniform(0.0, 1.0))
            deadline = time.monotonic() + 20
            while process.poll() is None and not when(path) and time.monotonic() < deadline:
                pass
        process.send_signal(number)
        _, said = process.communicate(timeout=120)
        if "Traceback" in said:
            return f"a traceback: {said[-500:]}"
        steps.append(_step(path))
        process = _resume(path, folder)
    _, said = process.communicate(timeout=300)
    if process.returncode != 0:
        return f"it did not go on: {said[-500:]}"
    return _compared(whole, path, f"{number.name} with checkpoints of steps {', '.join(map(str, steps))}")


def _whole(folder: Path) -> Path:
    """A run that nothing happens to; made once."""
    runs = folder / "runs" / "whole"
    if not list(runs.glob("*/metrics.json")):
        process = _train("name=whole", cwd=folder)
        _, said = process.communicate(timeout=300)
        assert process.returncode == 0, said
    return next(runs.iterdir())


def _train(*typed: str, cwd: Path) -> subprocess.Popen[str]:
    cwd.mkdir(parents=True, exist_ok=True)
    environment = os.environ | {"OMP_NUM_THREADS": "1", "OMP_WAIT_POLICY": "PASSIVE"}
    command = [sys.executable, str(SCRIPT), *(typed if typed[0].startswith("resume") else (*TRAINING, *typed))]
    return subprocess.Popen(command, cwd=cwd, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)


def _resume(path: Path, folder: Path) -> subprocess.Popen[str]:
    return _train(f"resume='{path}'", cwd=folder)


def _found(runs: Path, process: subprocess.Popen[str]) -> Path:
    """The folder of the run, as soon as it is there."""
    while process.poll() is None:
        for config in runs.glob("*/config.yaml"):
            return config.parent
        time.sleep(0.01)
    raise RuntimeError(f"it ended before it made its folder: {process.communicate()[1]}")


def _wait_for_checkpoint(path: Path, process: subprocess.Popen[str]) -> None:
    while process.poll() is None and not (path / "checkpoints" / "last.ckpt").exists():
        time.sleep(0.01)


def _is_writing(path: Path) -> bool:
    return any((path / "checkpoints").glob(".*.tmp"))


def _step(path: Path) -> int:
    checkpoint = path / "checkpoints" / "last.ckpt"
    return int(torch.load(checkpoint, weights_only=True)["global_step"]) if checkpoint.exists() else 0


def _fill(file: Path) -> None:
    with file.open("wb", buffering=0) as stream:
        try:
            while True:
                stream.write(bytes(1 << 16))
        except OSError:
            return


def _compared(whole: Path, path: Path, what: str) -> str:
    """`equal` with what happened, or what differs: weights, average, optimizer, schedule, random numbers, logged rows."""
    a, b = (torch.load(run / "checkpoints" / "last.ckpt", weights_only=True) for run in (whole, path))
    parts = (
        "state_dict",
        "current_model_state",
        "averaging_state",
        "optimizer_states",
        "lr_schedulers",
        "global_step",
        "epoch",
    )
    wrong = [part for part in parts if not same(a[part], b[part])]
    wrong += ["random numbers"] * (not same(a["callbacks"]["RandomState"], b["callbacks"]["RandomState"]))
    wrong += ["metrics.csv"] * (logged(whole) != logged(path))
    wrong += [f"left over: {left.name}" for left in path.rglob(".*.tmp")]
    return f"equal ({what})" if not wrong else f"DIFFERENT: {', '.join(wrong)} ({what})"


def same(a: Any, b: Any) -> bool:
    """Whether two parts of checkpoints are equal to the bit."""
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(same(a[key], b[key]) for key in a)
    if isinstance(a, (list, tuple)):
        return len(a) == len(b) and all(map(same, a, b))
    return torch.equal(a, b) if isinstance(a, torch.Tensor) else bool(a == b)


def logged(run: Path) -> list[dict[str, str]]:
    """What metrics.csv holds, but for the speed."""
    with (run / "metrics.csv").open(newline="") as stream:
        return [{key: value for key, value in row.items() if "per_second" not in key} for row in csv.DictReader(stream)]


if __name__ == "__main__":
    sys.exit(main())
