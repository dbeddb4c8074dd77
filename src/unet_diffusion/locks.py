"""One process at a time: nothing is downloaded or made twice by processes that start together, and no run trained by two."""

import getpass
import os
import tempfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from filelock import BaseFileLock, FileLock, Timeout

from unet_diffusion.errors import UserError


@contextmanager
def one_at_a_time(path: Path) -> Iterator[None]:
    """Of this user's processes on this machine, lets one at a time do something about a file or folder.

    The others wait, and then look again whether there is still something to do. A killed process blocks nobody. Not to be
    nested for one path.

    Args:
        path: need not exist; nothing is written there, as the lock lies in the system's folder for temporary files.
    """
    with _lock(path):
        yield


@contextmanager
def one_alone(path: Path) -> Iterator[None]:
    """Of this user's processes on this machine, lets one train the run in a folder, and refuses the others.

    Raises:
        UserError: another one is at it.
    """
    lock = _lock(path)
    try:
        lock.acquire(timeout=0)
    except Timeout as error:
        raise UserError(f"{os.path.relpath(path)} is being trained by another process: wait for its end, or stop it") from error
    try:
        yield
    finally:
        lock.release()


def _lock(path: Path) -> BaseFileLock:
    mark = zlib.crc32(str(path.resolve()).encode())
    return FileLock(Path(tempfile.gettempdir()) / f"unet_diffusion-{getpass.getuser()}-{mark:08x}.lock")
