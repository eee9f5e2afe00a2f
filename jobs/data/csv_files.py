"""CSV and TSV as spreadsheets and programs write them."""

from __future__ import annotations

import csv
from collections.abc import Mapping, Sequence
from pathlib import Path

import pyarrow as pa
import pyarrow.csv

_SEPARATORS = ",;\t"


def header_of(line: bytes, *, tabs: bool) -> tuple[str, list[str]]:
    """The separator, and the names of the columns without the spaces around them.

    Args:
        line: the first one of the file, UTF-8.
        tabs: whether tabs separate, whatever else the line has.

    Raises:
        ValueError: there are no names, or one twice.
    """
    text = line.decode("utf-8-sig")
    separator = "\t" if tabs else max(_SEPARATORS, key=text.count)
    names = [name.strip() for name in next(csv.reader([text], delimiter=separator), [])]
    if not names:
        raise ValueError("its first line is empty: the names of the columns belong there")
    if len(set(names)) < len(names):
        raise ValueError(f"column {next(n for n in names if names.count(n) > 1)!r} is there twice")
    return separator, names


def parse(
    source: Path | pa.BufferReader,
    separator: str,
    names: Sequence[str],
    *,
    types: Mapping[str, pa.DataType],
    wanted: Sequence[str] | None = None,
    block_size: int | None = None,
) -> pa.Table:
    """The rows of a file below its header, or of a part of it. Where no comma separates, numbers may have
    decimal commas, in all of a column.

    Args:
        source: a file, gzipped or not, or rows without the header.
        separator: of the columns.
        names: of the columns, in order.
        types: of columns that are not guessed.
        wanted: only these columns; all of them if None.
        block_size: bytes that are parsed at once.
    """

    def read(columns: Sequence[str] | None, point: str) -> pa.Table:
        if isinstance(source, pa.BufferReader):
            source.seek(0)
        return pyarrow.csv.read_csv(
            source,
            pyarrow.csv.ReadOptions(
                column_names=names, skip_rows=int(isinstance(source, Path)), block_size=block_size
            ),
            pyarrow.csv.ParseOptions(delimiter=separator, newlines_in_values=True),
            pyarrow.csv.ConvertOptions(column_types=types, include_columns=columns, decimal_point=point),
        )

    table = read(wanted, ".")
    texts = [f.name for f in table.schema if pa.types.is_string(f.type) and f.name not in types]
    if separator == "," or not texts:
        return table
    for name, column in zip(texts, read(texts, ",").columns, strict=True):
        if pa.types.is_floating(column.type):
            table = table.set_column(table.column_names.index(name), name, column)
    return table
