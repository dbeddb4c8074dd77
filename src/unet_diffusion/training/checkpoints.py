"""Checkpoints on disk: whole or not there at all, and read as plain data."""

import contextlib
import errno
import os
from pathlib import Path
from typing import Any, BinaryIO

import torch
from lightning.fabric.plugins.io import TorchCheckpointIO

from unet_diffusion.errors import UserError
from unet_diffusion.saved_checkpoint import load_checkpoint

_FULL = {errno.ENOSPC: "the disk is full", errno.EDQUOT: "the quota is used up", errno.EFBIG: "the file would be too large"}


class WholeCheckpoints(TorchCheckpointIO):
    """Writes a checkpoint beside its place, flushes and renames it: the one before stays until the new one is whole.

    Reading runs no code: `weights_only=True`, whatever is asked.
    """

    def save_checkpoint(self, checkpoint: dict[str, Any], path: str | Path, storage_options: Any = None) -> None:
        """As Lightning's.

        Raises:
            UserError: it cannot be written; the one before is still there.
        """
        place = Path(path)
        temporary = place.with_name(f".{place.name}.tmp")
        try:
            place.parent.mkdir(parents=True, exist_ok=True)
            with temporary.open("wb") as stream:
                _write(checkpoint, stream)
                stream.flush()
                os.fsync(stream.fileno())
            temporary.replace(place)
            _flush_folder(place.parent)
        except OSError as error:
            with contextlib.suppress(OSError):
                temporary.unlink(missing_ok=True)
            raise UserError(f"the checkpoint {place} cannot be written: {why_not_written(error)}") from error

    def load_checkpoint(self, path: str | Path, map_location: Any = None, weights_only: bool | None = True) -> dict[str, Any]:
        """As Lightning's.

        Raises:
            UserError: it is damaged, or holds more than plain data.
        """
        checkpoint = load_checkpoint(Path(path))
        for state in checkpoint.get("callbacks", {}).values():
            if isinstance(state, dict) and "best_model_path" in state:
                _follow(state, Path(path).absolute().parent)
        return checkpoint


def why_not_written(error: OSError) -> str:
    """An error of the disk in words."""
    return _FULL.get(error.errno or 0, error.strerror or str(error))


def _write(checkpoint: dict[str, Any], stream: BinaryIO) -> None:
    """`torch.save`, which turns the disk's errors into others of its own; this raises the disk's."""
    kept = _Noting(stream)
    try:
        torch.save(checkpoint, kept)  # type: ignore[arg-type]
    except (OSError, RuntimeError):
        if kept.error is not None:
            raise kept.error from None
        raise
    if kept.error is not None:
        raise kept.error


class _Noting:
    """A stream that remembers what went wrong."""

    def __init__(self, stream: BinaryIO) -> None:
        self.stream = stream
        self.error: OSError | None = None

    def write(self, data: Any) -> int:
        try:
            return self.stream.write(data)
        except OSError as error:
            self.error = error
            raise

    def flush(self) -> None:
        self.stream.flush()


def _flush_folder(folder: Path) -> None:
    """Makes a renaming last; not every system lets a folder be opened."""
    with contextlib.suppress(OSError):
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def _follow(state: dict[str, Any], folder: Path) -> None:
    """Lets what Lightning's ModelCheckpoint remembers point into this folder: the run may have been moved since."""
    for name in ("best_model_path", "kth_best_model_path", "last_model_path"):
        state[name] = _in(folder, state.get(name))
    scored = {_in(folder, path): score for path, score in state.get("best_k_models", {}).items()}
    state["best_k_models"] = {path: score for path, score in scored.items() if path}
    state["dirpath"] = str(folder)


def _in(folder: Path, path: object) -> str:
    """The checkpoint of this name in this folder; empty for other names, as Lightning removes what it is told."""
    name = Path(str(path)).name
    return str(folder / name) if name.endswith(".ckpt") else ""
