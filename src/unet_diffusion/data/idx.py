"""The IDX file format of the MNIST family, gzipped or plain."""

import gzip
import zlib
from pathlib import Path

import numpy as np

from unet_diffusion.errors import UserError


def read_idx(path: Path) -> np.ndarray:
    """The uint8 array in an IDX file.

    Layout (big endian): two zero bytes, one byte of type (8 = uint8), one byte with the number of dimensions, an int32 for
    each dimension, then the values.

    Raises:
        UserError: the file is not IDX, damaged, or cut short.
    """
    try:
        raw = path.read_bytes()
        if raw[:2] == b"\x1f\x8b":
            raw = gzip.decompress(raw)
    except (OSError, EOFError, zlib.error) as error:
        raise UserError(f"{path} cannot be read ({error}): fetch it again") from error
    dimensions = raw[3] if len(raw) > 3 and raw[:3] == b"\x00\x00\x08" else 0
    header = 4 + 4 * dimensions
    if not dimensions or len(raw) < header:
        raise UserError(f"{path} is not an IDX file of bytes: fetch it again")
    shape = tuple(int(side) for side in np.frombuffer(raw, ">i4", count=dimensions, offset=4))
    if len(raw) != header + int(np.prod(shape)):
        raise UserError(f"{path} is cut short or damaged: it has {len(raw)} bytes, not what its header says: fetch it again")
    return np.frombuffer(raw, np.uint8, offset=header).reshape(shape)
