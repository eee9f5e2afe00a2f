"""Compressed files, recognized by their first bytes."""

from __future__ import annotations

import bz2
import gzip
import lzma
from collections.abc import Callable
from io import BytesIO
from pathlib import Path
from typing import Any, BinaryIO

from guard.logs.log import TraceError

PACKED = frozenset((".gz", ".bz2", ".xz", ".zst"))
"""What their names end in."""


def unpacked(given: Path | bytes) -> BinaryIO:
    """The unpacked bytes of a file, or of bytes that were read.

    Raises:
        TraceError: it is compressed by zstd, and pyarrow is not installed.
    """
    with _opened(given) as file:
        magic = file.read(max(map(len, _FORMATS)))
    open_format = next((found for start, found in _FORMATS.items() if magic.startswith(start)), None)
    if open_format is None:
        return _opened(given)
    try:
        found: BinaryIO = open_format(BytesIO(given) if isinstance(given, bytes) else given)
    except ImportError:
        path = Path("standard input") if isinstance(given, bytes) else given
        raise TraceError(
            path, 0, "compressed by zstd: pip install pyarrow, or unpack it with zstd -d"
        ) from None
    return found


def _opened(given: Path | bytes) -> BinaryIO:
    return BytesIO(given) if isinstance(given, bytes) else given.open("rb")


def _zstd(given: Any) -> Any:
    import pyarrow as pa

    return pa.input_stream(given, compression="zstd")


_FORMATS: dict[bytes, Callable[[Any], Any]] = {
    b"\x1f\x8b": gzip.open,
    b"BZh": bz2.open,
    b"\xfd7zXZ": lzma.open,
    b"\x28\xb5\x2f\xfd": _zstd,
}
