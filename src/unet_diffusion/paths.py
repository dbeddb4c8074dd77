"""Paths that users name, and the files below them."""

import errno
import os
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

from unet_diffusion.checks import shortened
from unet_diffusion.errors import UserError, first_line, printable

_DEEPEST = 50


def named_path(key: str, value: object) -> Path:
    """The path that was typed for a key, with `~` for a home folder; there need not be anything.

    Raises:
        UserError: there can be nothing of that name, or it may not be looked at.
    """
    text = str(value)
    try:
        path = Path(text).expanduser()
        path.exists()
        path.resolve()
    except (OSError, RuntimeError, ValueError) as error:  # too long, no such user, a link to itself
        why = printable(error.strerror if isinstance(error, OSError) else first_line(error))
        raise UserError(f"{key}={shortened(text)} is no path that can be used ({shortened(why, 100)}): name another") from error
    return path


def open_file(path: Path) -> BinaryIO:
    """Opens a file to be read.

    Raises:
        OSError: there is none, or it is something else: a named pipe would keep its reader waiting, a device may have no end.
    """
    if path.exists() and not path.is_file():
        raise OSError(errno.EINVAL, "not a regular file", str(path))
    return path.open("rb")


def files_below(folder: Path) -> Iterator[Path]:
    """All files below a folder, in no order: regular ones, and links to these.

    Neither links to folders are followed, which may lead in circles, nor folders more than 50 deep; devices, pipes and what
    may not be read are left out.
    """
    waiting = [(folder, 0)]
    while waiting:
        path, depth = waiting.pop()
        for entry in _entries(path):
            if _is_folder(entry):
                waiting += [(Path(entry.path), depth + 1)] if depth < _DEEPEST else []
            elif Path(entry.path).is_file():
                yield Path(entry.path)


def _entries(folder: Path) -> list[os.DirEntry[str]]:
    try:
        with os.scandir(folder) as entries:
            return list(entries)
    except OSError:
        return []


def _is_folder(entry: os.DirEntry[str]) -> bool:
    try:
        return entry.is_dir(follow_symlinks=False)
    except OSError:
        return False
