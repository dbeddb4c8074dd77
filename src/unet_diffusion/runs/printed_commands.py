"""Commands that messages print, as they can be pasted into a shell."""

import os
import shlex
import sys
from pathlib import Path


def command_line(script: str) -> str:
    """The command of a script: as in a clone, or as in an installation without one."""
    is_installed = Path(sys.argv[0]).stem == "unet-diffusion"
    return f"unet-diffusion {script}" if is_installed else f"python scripts/{script}.py"


def shell_override(key: str, path: Path) -> str:
    """`key=path` with the quotes that the shell needs; Hydra's are added when it is read."""
    return shlex.quote(f"{key}={os.path.relpath(path)}")
