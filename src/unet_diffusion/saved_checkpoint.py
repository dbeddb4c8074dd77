"""Reading a checkpoint as the plain data that it is to be, whoever wrote it."""

import pickle
import warnings
import zipfile
import zlib
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from unet_diffusion.errors import UserError


def load_checkpoint(path: Path) -> dict[str, Any]:
    """A checkpoint's content; plain data only, so that a checkpoint from a stranger can run no code.

    Raises:
        UserError: it is damaged, cut short, or holds pickled objects.
    """
    if not path.is_file() or not _is_whole_zip(path):  # a named pipe would keep the reader waiting
        raise UserError(f"{path} is damaged, cut short or no checkpoint: take another checkpoint of the run")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # remarks on odd tensors, which are refused below
            content = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        raise UserError(
            f"{path} holds more than plain data, so it was not loaded and none of its code was run: "
            f"take another checkpoint of the run"
        ) from error
    except Exception as error:
        raise UserError(f"{path} is no checkpoint that torch can read: take another checkpoint of the run") from error
    if not isinstance(content, dict) or not is_state(content.get("state_dict")):
        raise UserError(f"{path} is no checkpoint of a run: it holds no state_dict of tensors")
    checkpoint: dict[str, Any] = content
    return checkpoint


def is_state(state: object) -> bool:
    """Whether it is a dictionary of names to whole tensors."""
    return isinstance(state, dict) and all(isinstance(k, str) and _is_whole(v) for k, v in state.items())


def _is_whole(value: object) -> bool:
    """Whether a tensor has a number of its own in memory for each of its places: one that repeats a few can claim any size."""
    if not isinstance(value, Tensor) or value.layout != torch.strided or value.device.type != "cpu":
        return False
    return value.untyped_storage().nbytes() >= value.numel() * value.element_size()


def _is_whole_zip(path: Path) -> bool:
    """Whether all of a zip file's checksums are right; torch writes zips, but does not check them.

    It never compresses them: one whose content claims to be larger than the file is made to fill the memory.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            stored = all(entry.compress_type == zipfile.ZIP_STORED for entry in archive.infolist())
            claimed = sum(entry.file_size for entry in archive.infolist())
            return stored and claimed <= path.stat().st_size and archive.testzip() is None
    except (OSError, ValueError, zipfile.BadZipFile, zlib.error, EOFError, NotImplementedError, RuntimeError):
        return False
