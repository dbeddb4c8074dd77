"""Files that are written completely or not at all, and JSON of unknown origin."""

import json
import os
from pathlib import Path
from tempfile import NamedTemporaryFile
from typing import Any


def write_atomically(path: Path, content: str | bytes) -> None:
    """Writes a file completely or not at all; a link is replaced, not followed."""
    path.parent.mkdir(parents=True, exist_ok=True)
    # A new name: a predictable one could be a planted link.
    with NamedTemporaryFile(dir=path.parent, prefix=f".{path.name}-", delete=False) as file:
        try:
            file.write(content.encode() if isinstance(content, str) else content)
            file.close()
            os.chmod(file.name, 0o666 & ~_umask())
            Path(file.name).replace(path)
        except BaseException:
            os.unlink(file.name)
            raise


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask


def write_json(path: Path, content: dict[str, Any]) -> None:
    """Writes JSON completely or not at all."""
    write_atomically(path, json.dumps(content, indent=2) + "\n")


def read_json(path: Path) -> dict[str, Any] | None:
    """Reads a JSON object; None if the file is missing, damaged or something else."""
    try:
        content = json.loads(path.read_text())
    except (OSError, ValueError, RecursionError):
        return None
    return content if isinstance(content, dict) else None
