"""One process at a time: so that nothing is downloaded or made twice by processes that start together."""

import getpass
import tempfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from filelock import FileLock


@contextmanager
def one_at_a_time(path: Path) -> Iterator[None]:
    """Of this user's processes on this machine, lets one at a time do something about a file or folder.

    The others wait, and then look again whether there is still something to do. A killed process blocks nobody. Not to be
    nested for one path.

    Args:
        path: need not exist; nothing is written there, as the lock lies in the system's folder for temporary files.
    """
    mark = zlib.crc32(str(path.absolute()).encode())
    with FileLock(Path(tempfile.gettempdir()) / f"unet_diffusion-{getpass.getuser()}-{mark:08x}.lock"):
        yield
