"""The blocks and the labels of all files of a stream: what is known before any content is read."""

from __future__ import annotations

import json
import tarfile
import zlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet
from numpy.typing import NDArray

from jobs.data.errors import DataError
from jobs.data.streams.files import File, open_file
from jobs.data.streams.formats import FORMATS, Block, Columns, Scanned
from jobs.data.streams.tars import label_order

_NAMED = 5


@dataclass(frozen=True, slots=True, eq=False)
class Index:
    """The rows of some files, in the order of their names.

    Attributes:
        blocks: that make them up.
        sizes: rows of each block, int64.
        ends: where in all rows each block ends, int64.
        labels: int64 [rows], each an index into ``classes``; zeros where there are none.
        classes: their names.
        identity: of the data: files, their sizes, and what the blocks' checksums say.
    """

    blocks: tuple[Block, ...]
    sizes: NDArray[np.int64]
    ends: NDArray[np.int64]
    labels: NDArray[np.int64]
    classes: tuple[str, ...]
    identity: str

    def place(self, row: int) -> str:
        """A row's file, and its number in it, from 1."""
        block = int(np.searchsorted(self.ends, row, side="right"))
        first = next(n for n, other in enumerate(self.blocks) if other.file == self.blocks[block].file)
        return f"{self.blocks[block].file.path}: row {row - int(self.ends[first] - self.sizes[first]) + 1}"


def read_index(files: Mapping[File, int], columns: Columns, classes: Sequence[str] | None = None) -> Index:
    """Scans all files: footers and labels of Parquet, headers and labels of tars, and all of the others.

    Args:
        files: with the size of each in bytes.
        columns: of the label, and those that must be there.
        classes: of the training rows; None to take those that occur.

    Raises:
        DataError: a file cannot be read, lacks a column, or has a label that is none; it is named.
    """
    blocks, parts, checksum = list[Block](), list[NDArray[np.int64]](), 0
    named = _class_names(next(iter(files)), columns.label)
    found = _Classes(columns.label, named, classes)
    for file in files:
        for block, rows, labels, checked in _scanned(file, columns):
            parts.append(np.zeros(rows, np.int64) if labels is None else found.numbers(labels, block))
            blocks.append(block)
            checksum = zlib.crc32(checked.to_bytes(4, "little"), checksum)
    order = list(classes or named) or sorted(found.known, key=label_order)
    number = {name: place for place, name in enumerate(order)}
    renumbered = np.array([number[name] for name in found.known] or [0], dtype=np.int64)
    labels_of_all = renumbered[np.concatenate(parts)] if parts else np.empty(0, np.int64)
    checksum = zlib.crc32(labels_of_all.data, checksum)
    size = f"{sum(files.values())} bytes in {len(files)} files"
    sizes = np.array([len(part) for part in parts], dtype=np.int64)
    return Index(
        tuple(blocks), sizes, np.cumsum(sizes), labels_of_all, tuple(order), f"{size}, {checksum:08x}"
    )


def _scanned(file: File, columns: Columns) -> Iterator[Scanned]:
    try:
        yield from FORMATS[file.kind].scan(file, columns)
    except (pa.ArrowException, OSError, EOFError, ValueError, tarfile.TarError) as error:
        if isinstance(error, DataError):
            raise
        raise DataError(f"{file.path}: cannot be read: {' '.join(str(error).split())}") from error


def _class_names(file: File, label: str | None) -> list[str]:
    """Those of a ``ClassLabel`` of Hugging Face ``datasets``; the label is then an index into them."""
    if file.kind != ".parquet" or label is None:
        return []
    try:
        with open_file(file) as source:
            metadata = pyarrow.parquet.read_schema(source).metadata or {}
        return [
            str(name) for name in json.loads(metadata[b"huggingface"])["info"]["features"][label]["names"]
        ]
    except (KeyError, TypeError, ValueError, OSError, pa.ArrowException):
        return []  # damage is reported by the scan


class _Classes:
    """Numbers the labels in the order in which they are found.

    Args:
        column: of the labels, for messages.
        named: what a label that is a number stands for; empty where it is its own name.
        only: the classes that there may be; None for any.

    Attributes:
        known: number by name.
    """

    def __init__(self, column: str | None, named: Sequence[str], only: Sequence[str] | None) -> None:
        self._column, self._named, self._only = column, named, only
        self.known: dict[str, int] = {name: number for number, name in enumerate(named)}

    def numbers(self, labels: pa.ChunkedArray, block: Block) -> NDArray[np.int64]:
        """The number of each label.

        Raises:
            DataError: one is missing, or no class; the block is named.
        """
        encoded = pa.types.is_dictionary(labels.type)
        kind = labels.type.value_type if encoded else labels.type
        if not (pa.types.is_integer(kind) or pa.types.is_boolean(kind) or _is_text(kind)):
            message = f"column {self._column!r} is {kind}: labels are texts or whole numbers"
            raise DataError(f"{block.file.path}: {message}")
        coded = (labels.unify_dictionaries() if encoded else labels.dictionary_encode()).combine_chunks()
        if coded.null_count:
            raise DataError(f"{_place(block)} has a row without {self._column}")
        numbers = [self._number(value, block) for value in coded.dictionary.to_pylist()]
        return np.array(numbers, dtype=np.int64)[coded.indices.to_numpy(zero_copy_only=False)]

    def _number(self, value: Any, block: Block) -> int:
        if value in (None, ""):
            raise DataError(f"{_place(block)} has a row without {self._column}")
        of_list = self._named and isinstance(value, int)
        name = self._named[value] if of_list and 0 <= value < len(self._named) else str(value)
        allowed = self._only or self._named
        if allowed and name not in allowed:
            some = ", ".join(allowed[:_NAMED]) + (", ..." if len(allowed) > _NAMED else "")
            what = f"{self._column} {value!r} is no class of the training data ({some})"
            raise DataError(f"{_place(block)}: {what}")
        return self.known.setdefault(name, len(self.known))


def _place(block: Block) -> str:
    """A block, for messages."""
    if block.file.kind == ".parquet":
        return f"{block.file.path}: row group {block.start}"
    return f"{block.file.path}: bytes {block.start} to {block.end}"


def _is_text(kind: pa.DataType) -> bool:
    return bool(pa.types.is_string(kind) or pa.types.is_large_string(kind))
