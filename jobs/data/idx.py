"""Reads IDX, the file format of MNIST and its relatives, gzipped or not.

Layout (big-endian): two zero bytes, a type code (8: unsigned byte), the number of dimensions, one
32-bit size per dimension, then the values in row-major order.
"""

import gzip
import math
import struct
import zlib
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from jobs.data.errors import DataError

_UNSIGNED_BYTE = 8


def read_idx(path: Path, dimensions: int) -> Tensor:
    """The uint8 tensor stored in an IDX file; a name ending in ``.gz`` is decompressed.

    Raises:
        DataError: the file is missing, damaged, truncated, or does not hold bytes in that many dimensions.
    """
    content = _content(path)
    header = 4 + 4 * dimensions
    if len(content) < header or content[:3] != bytes([0, 0, _UNSIGNED_BYTE]):
        raise DataError(f"{path}: not an IDX file of unsigned bytes (begins with {content[:4].hex(' ')!r})")
    if content[3] != dimensions:
        raise DataError(f"{path}: has {content[3]} dimensions, {dimensions} expected")
    shape = struct.unpack(f">{dimensions}I", content[4:header])
    expected = math.prod(shape)
    if len(content) - header != expected:
        raise DataError(
            f"{path}: truncated or damaged: {len(content) - header} bytes of data, "
            f"{expected} expected for the shape {'x'.join(map(str, shape))}"
        )
    return torch.from_numpy(np.frombuffer(content, np.uint8, offset=header).reshape(shape).copy())


def _content(path: Path) -> bytes:
    try:
        data = path.read_bytes()
        return gzip.decompress(data) if path.suffix == ".gz" else data
    except (EOFError, gzip.BadGzipFile, zlib.error) as error:
        raise DataError(f"{path}: truncated or damaged gzip file ({error})") from error
    except OSError as error:
        raise DataError(f"{path}: cannot be read: {error.strerror}") from error
