"""Runs a case in a process of its own, forked from one that has everything imported already, and judges how it ended."""

import os
import re
import resource
import runpy
import shutil
import signal
import socket
import sys
import time
import traceback
from dataclasses import dataclass
from pathlib import Path

from helpers import ROOT

from fuzzing.case import MARK, Case

TIME_LIMIT_S = 60
_MEMORY = 6 << 30
_FILE = 1 << 26
_MOST_MEMORY = 3 << 30
_WARNING = re.compile(r"^\S+\.py:\d+: \w*Warning: .*\n(  .*\n)?", re.MULTILINE)
_HYDRAS = "Error executing job with overrides: "  # of a sweep; ours follows
_UNCLEAR = re.compile(r"object at 0x|NoneType|has no attribute|<class|<function|is not subscriptable|Traceback|Errno \d+\]\s*$")


@dataclass(frozen=True)
class Ended:
    """How a case ended."""

    status: int
    """Of the process; negative: the signal that killed it."""
    out: str
    err: str
    seconds: float
    memory: int
    """Most that was resident at once, bytes."""
    wrong: str
    """What is wrong with that; empty where nothing is."""


def run_case(case: Case, folder: Path) -> Ended:
    """Runs a case in its folder, which a good ending leaves with complete files, and a bad one as it was."""
    before = _tree(folder)
    started = time.monotonic()
    process = os.fork()
    if process == 0:
        _child(case, folder)
    status, usage, ended = _wait(process)
    seconds = time.monotonic() - started
    out, err = (folder.with_suffix(ending).read_text(errors="replace") for ending in (".out", ".err"))
    memory = usage.ru_maxrss * 1024
    wrong = "" if ended else f"did not end within {TIME_LIMIT_S} s"
    wrong = wrong or _wrong(status, out, err) or _left_behind(status, before, _tree(folder), case)
    if not wrong and memory > _MOST_MEMORY:
        wrong = f"took {memory >> 20} MiB of memory"
    return Ended(status, out, err, seconds, memory, wrong)


def _child(case: Case, folder: Path) -> None:
    status = 1
    try:
        os.setsid()
        for number, ending in ((1, ".out"), (2, ".err")):
            os.dup2(os.open(folder.with_suffix(ending), os.O_WRONLY | os.O_CREAT | os.O_TRUNC), number)
        os.dup2(os.open("/dev/null", os.O_RDONLY), 0)
        resource.setrlimit(resource.RLIMIT_DATA, (_MEMORY, _MEMORY))
        resource.setrlimit(resource.RLIMIT_FSIZE, (_FILE, _FILE))
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        socket.socket.connect = _no_network  # type: ignore[method-assign,assignment]
        os.chdir(folder)
        sys.argv = [f"{case.script}.py", *case.arguments]
        runpy.run_path(str(ROOT / "scripts" / f"{case.script}.py"), run_name="__main__")
        status = 0
    except SystemExit as end:
        status = end.code if isinstance(end.code, int) else int(end.code is not None)
    except BaseException:  # noqa: BLE001 - whatever it is, it is what this looks for
        traceback.print_exc()
    finally:
        try:
            sys.stdout.flush()
            sys.stderr.flush()
        finally:
            os._exit(status)


def _no_network(*_: object) -> None:
    raise OSError("there is no network here")


def _wait(process: int) -> tuple[int, resource.struct_rusage, bool]:
    deadline = time.monotonic() + TIME_LIMIT_S
    pause = 0.002
    while time.monotonic() < deadline:
        found, code, usage = os.wait4(process, os.WNOHANG)
        if found:
            return os.waitstatus_to_exitcode(code), usage, True
        time.sleep(pause)
        pause = min(2 * pause, 0.05)
    os.killpg(process, signal.SIGKILL)
    _, code, usage = os.wait4(process, 0)
    return os.waitstatus_to_exitcode(code), usage, False


def _wrong(status: int, out: str, err: str) -> str:
    if "Traceback (most recent call last)" in out + err:
        return "a traceback"
    if status < 0:
        return f"killed by {signal.Signals(-status).name}"
    if status == 0:
        return ""
    lines = [line for line in _WARNING.sub("", err).strip().splitlines() if not line.startswith(_HYDRAS)]
    if status != 2 or not lines:
        return f"status {status} with {len(lines)} lines of explanation"
    if lines[0].startswith("usage: "):  # of Hydra's own argument parser
        return ""
    for line in lines:
        if not line.startswith("error: ") or len(line) < 25 or _UNCLEAR.search(line):
            return f"no clear sentence: {line[:300]}"
    return ""


def _left_behind(status: int, before: set[str], after: set[str], case: Case) -> str:
    new = after - before
    if any(Path(path).name == MARK for path in new):
        return "ran code"
    if any(word.startswith("runs=") for word in case.arguments):  # those before the one that is refused are scored
        new = {path for path in new if "/evaluations/" not in f"{path}/" and "/events." not in path}
    if any(word.startswith("resume=") for word in case.arguments):  # the folder is there already, and its logs grow
        new = {path for path in new if path.endswith(".tmp")}
    if status:
        return f"left behind {sorted(new)[:5]}" if new else ""
    half_made = [path for path in new if path.endswith(".tmp")]
    if case.script == "train":
        runs = {str(Path(path).parent) for path in new if Path(path).name == "config.yaml"}
        half_made += [run for run in runs if f"{run}/metrics.json" not in new]
    return f"half-made: {half_made[:5]}" if half_made else ""


def _tree(folder: Path) -> set[str]:
    """Everything below a folder, but for what Hydra notes of a sweep."""
    found = set()
    for path, folders, files in os.walk(folder):
        found |= {os.path.relpath(os.path.join(path, name), folder) for name in (*folders, *files)}
    return found


def remove(folder: Path) -> None:
    """Removes a case's folder and what it said."""
    shutil.rmtree(folder, ignore_errors=True)
    for ending in (".out", ".err"):
        folder.with_suffix(ending).unlink(missing_ok=True)
