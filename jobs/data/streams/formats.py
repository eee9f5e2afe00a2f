"""Files cut into blocks of rows, each of which is read at once: row groups of Parquet, parts of the others.

Imports no torch: Ray tasks that read blocks start in a second.
"""

from __future__ import annotations

import io
import zlib
from collections.abc import Callable, Iterator, Sequence
from functools import lru_cache
from itertools import islice
from typing import NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.json
import pyarrow.parquet

from jobs.data.csv_files import header_of, parse
from jobs.data.streams.files import File, open_file
from jobs.data.streams.tars import Found, samples_of

_TEXT_BYTES, _TAR_BYTES = 8 << 20, 32 << 20


class Block(NamedTuple):
    """Rows of a file: the row group ``start`` of a Parquet file, else the bytes from ``start`` to ``end``."""

    file: File
    start: int
    end: int


class Columns(NamedTuple):
    """What is read of each row.

    Attributes:
        label: the column of the label; of a tar, the field of a JSON label; None where there is none.
        content: the columns of the content; None for all.
        text: those of them that are text, even where they look like numbers.
    """

    label: str | None
    content: tuple[str, ...] | None
    text: tuple[str, ...] = ()

    @property
    def required(self) -> list[str]:
        """All that are named."""
        return [*(self.content or ()), *filter(None, [self.label])]


class Scanned(NamedTuple):
    """A block, its rows, their labels where they have any, and a checksum of what is known of it."""

    block: Block
    rows: int
    labels: pa.ChunkedArray | None
    checksum: int


class Format(NamedTuple):
    """How files of a kind are cut into blocks, and how a block is read."""

    scan: Callable[[File, Columns], Iterator[Scanned]]
    read: Callable[[Block, Columns], pa.Table]


def read_block(block: Block, columns: Columns) -> pa.Table:
    """The content of a block.

    Raises:
        OSError, ValueError, tarfile.TarError, pyarrow.ArrowException: the file is gone, damaged, or lacks a
            column.
    """
    return FORMATS[block.file.kind].read(block, columns)


def _scan_parquet(file: File, columns: Columns) -> Iterator[Scanned]:
    with open_file(file) as source:
        parquet = pyarrow.parquet.ParquetFile(source)
        checksum = _footer(source)
        _require(columns.required, parquet.schema_arrow.names)
        for group in range(parquet.num_row_groups):
            rows, labels = parquet.metadata.row_group(group).num_rows, None
            if columns.label is not None:
                labels = parquet.read_row_group(group, [columns.label]).column(0)
            yield Scanned(Block(file, group, group + 1), rows, labels, checksum)


def _footer(source: pa.NativeFile) -> int:
    """A checksum of the footer, which has places, sizes and usually limits of all columns."""
    size = source.size()
    source.seek(max(0, size - 8))
    length = int.from_bytes(source.read(4), "little")
    source.seek(max(0, size - 8 - length))
    return zlib.crc32(source.read(length))


def _read_parquet(block: Block, columns: Columns) -> pa.Table:
    with open_file(block.file) as source:
        wanted = None if columns.content is None else list(columns.content)
        return pyarrow.parquet.ParquetFile(source).read_row_group(block.start, wanted)


def _scan_text(file: File, columns: Columns) -> Iterator[Scanned]:
    """Blocks that end where a row does: a line break between quotes belongs to a cell of CSV."""
    header, _, names = _header(file)
    at, rest = len(header), b""
    if names:
        _require(columns.required, names)
    scanned = columns if columns.label is None else Columns(columns.label, ())
    with open_file(file) as source:
        source.seek(at)
        while True:
            chunk = source.read(_TEXT_BYTES)
            rest += chunk
            size = _whole_rows(rest, quoted=_is_csv(file)) if chunk else len(rest)
            rows, rest = rest[:size], rest[size:]
            block, at = Block(file, at, at + size), at + size
            if rows.strip():
                table = _parse(file, rows, scanned)
                labels = None if columns.label is None else table.column(columns.label)
                yield Scanned(block, table.num_rows, labels, zlib.crc32(rows))
            if not chunk:
                return


def _read_text(block: Block, columns: Columns) -> pa.Table:
    with open_file(block.file) as source:
        source.seek(block.start)
        table = _parse(block.file, source.read(block.end - block.start), columns)
    return table if columns.content is None else table.select(list(columns.content))


def _whole_rows(text: bytes, *, quoted: bool) -> int:
    """The bytes up to the end of the last whole row."""
    if not quoted:
        return text.rfind(b"\n") + 1
    found = np.frombuffer(text, dtype=np.uint8)
    quotes = np.cumsum(found == ord('"'), dtype=np.uint8)  # overflows, which keeps odd and even
    ends = np.flatnonzero((found == ord("\n")) & (quotes % 2 == 0))
    return int(ends[-1]) + 1 if len(ends) else 0


def _parse(file: File, rows: bytes, columns: Columns) -> pa.Table:
    wanted = None if columns.content is None else columns.required
    if not _is_csv(file):
        table = pyarrow.json.read_json(
            pa.BufferReader(rows), pyarrow.json.ReadOptions(block_size=max(len(rows), 1))
        )
        _require(wanted or [], table.column_names)
        return table
    _, separator, names = _header(file)
    _require(wanted or [], names)
    texts = dict.fromkeys([*columns.text, *filter(None, [columns.label])], pa.string())
    size = max(len(rows), 1)
    return parse(pa.BufferReader(rows), separator, names, types=texts, wanted=wanted, block_size=size)


@lru_cache(1024)
def _header(file: File) -> tuple[bytes, str, list[str]]:
    """The first line of a CSV file, its separator and the names of its columns; nothing of JSON lines."""
    with open_file(file) as source:
        if not _is_csv(file):
            if source.read(1) == b"[":
                raise ValueError("it is one array: write JSON lines, one object in each")
            return b"", "", []
        line = io.BufferedReader(source).readline()
    return line, *header_of(line, tabs=file.kind == ".tsv")


def _is_csv(file: File) -> bool:
    return file.kind in (".csv", ".tsv")


def _scan_tar(file: File, columns: Columns) -> Iterator[Scanned]:
    with open_file(file) as source:
        samples = samples_of(source, columns.label or "label", file.path)
        first = next(samples, None)
        while first is not None:
            part = [first]
            first = None
            for sample in samples:
                if sample.end - part[0].start > _TAR_BYTES:
                    first = sample
                    break
                part.append(sample)
            yield _scanned(file, part)


def _scanned(file: File, part: Sequence[Found]) -> Scanned:
    known = "\n".join(f"{sample.key} {sample.size} {sample.label}" for sample in part)
    block = Block(file, part[0].start, part[-1].end)
    labels = pa.chunked_array([pa.array([sample.label for sample in part])])
    return Scanned(block, len(part), labels, zlib.crc32(known.encode(errors="surrogateescape")))


def _read_tar(block: Block, columns: Columns) -> pa.Table:
    with open_file(block.file) as source:
        source.seek(block.start)
        part = io.BytesIO(source.read(block.end - block.start))
    samples = list(samples_of(part, columns.label or "label", block.file.path))
    content = part.getbuffer()
    images = [bytes(content[sample.offset : sample.offset + sample.size]) for sample in samples]
    name = columns.content[0] if columns.content else "image"
    return pa.table({name: pa.array(images, pa.large_binary())})


def _require(wanted: Sequence[str], names: Sequence[str]) -> None:
    missing = next((name for name in wanted if name not in names), None)
    if missing is not None:
        more = ", ..." if len(names) > 20 else ""
        raise ValueError(f"there is no column {missing!r}; it has {', '.join(islice(names, 20))}{more}")


_TEXT = Format(_scan_text, _read_text)
FORMATS = {
    ".parquet": Format(_scan_parquet, _read_parquet),
    **dict.fromkeys((".csv", ".tsv", ".jsonl", ".ndjson"), _TEXT),
    ".tar": Format(_scan_tar, _read_tar),
}
"""By the ending of a file's name."""
