"""The two file formats of the classic image sets, read with nothing in them trusted."""

from __future__ import annotations

import gzip
import io
import pickle  # noqa: TID251  # the class below takes its power to execute away
import struct
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from harness.errors import UserError


def unpickle_arrays(content: bytes, path: Path) -> Any:
    """The plain values and numpy arrays in the pickle read from `path`, with the text of Python 2 as latin-1.

    Raises UserError if the pickle names anything else, before that is imported or called.
    """
    try:
        return _ArrayUnpickler(io.BytesIO(content), encoding="latin1").load()
    except pickle.UnpicklingError as error:
        raise UserError(f"{path}: refused, a data file holds arrays and nothing that runs ({error})") from None


class _ArrayUnpickler(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        if (module, name) not in ALLOWED:
            raise pickle.UnpicklingError(f"it asks for {module}.{name}")
        return ALLOWED[module, name]


ALLOWED = {
    ("numpy.core.multiarray", "_reconstruct"): np.empty(0).__reduce__()[0],
    ("numpy._core.multiarray", "_reconstruct"): np.empty(0).__reduce__()[0],
    ("numpy", "ndarray"): np.ndarray,
    ("numpy", "dtype"): np.dtype,
}
"""All that an array's pickle calls, under the names of numpy 1 and 2."""


def read_idx(path: Path) -> Tensor:
    """The bytes of an idx file, perhaps gzipped, in the shape it declares; UserError where it is cut short or another.

    The format (Y. LeCun's MNIST page): 0, 0, 8 for unsigned bytes, the number of dimensions, each size as a big-endian
    32-bit number, the values.
    """
    try:
        content = gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes()
        zeros, kind, dimensions = struct.unpack_from(">HBB", content)
        shape = struct.unpack_from(f">{dimensions}I", content, 4)
        if (zeros, kind) != (0, 8):
            raise ValueError("not an idx file of unsigned bytes")
        return torch.frombuffer(bytearray(content), dtype=torch.uint8)[4 + 4 * dimensions :].reshape(shape)
    except (OSError, EOFError, zlib.error, struct.error, RuntimeError, ValueError) as error:
        raise UserError(f"{path} is corrupt: {error}") from None
