"""Where things are: names of new directories, and the image cache that a data part names."""

import secrets
import time
from pathlib import Path
from typing import Any

DEFAULT_CACHE = "~/.cache/unet_diffusion"
_RESIZED = "resized"  # subfolder of the cache with the resized images


def unique_name() -> str:
    """A new directory name: the time and a random id."""
    return f"{time.strftime('%Y%m%d-%H%M%S')}-{secrets.token_hex(3)}"


def with_cache(data: dict[str, Any], cache_dir: str) -> dict[str, Any]:
    """The part `data` with another cache; a `root` in the old cache moves if it is missing."""
    root = data.get("root")
    old_cache = str(data["cache_dir"]).removesuffix(_RESIZED)
    if root and root.startswith(old_cache) and not Path(root).expanduser().is_dir():
        root = f"{cache_dir}/{root.removeprefix(old_cache)}"
    return data | {"root": root, "cache_dir": f"{cache_dir}/{_RESIZED}"}


def without_local_paths(data: dict[str, Any]) -> dict[str, Any]:
    """The part `data` with the default cache; `root` is None if it is not in the cache."""
    old_cache = str(data["cache_dir"]).removesuffix(_RESIZED)
    root = data.get("root")
    in_cache = root is not None and root.startswith(old_cache)
    new_root = f"{DEFAULT_CACHE}/{root.removeprefix(old_cache)}" if root and in_cache else None
    return data | {"root": new_root, "cache_dir": f"{DEFAULT_CACHE}/{_RESIZED}"}
