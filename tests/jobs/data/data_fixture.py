"""IDX files for the tests of the data sources."""

import struct

from torch import Tensor


def idx(values: Tensor) -> bytes:
    """The content of an IDX file of unsigned bytes."""
    header = bytes([0, 0, 8, values.ndim]) + struct.pack(f">{values.ndim}I", *values.shape)
    return header + values.numpy().tobytes()
