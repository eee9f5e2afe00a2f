"""Tables of the user's: CSV, Parquet, JSON lines, and data sets that Hugging Face ``datasets`` saved."""

from __future__ import annotations

import gzip
import json
import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.json
import pyarrow.parquet

from jobs.data.csv_files import header_of, parse
from jobs.data.errors import DataError
from jobs.data.files import TABLES, why_no_text
from jobs.run_dir.strays import hidden
from jobs.spec.errors import did_you_mean

TRAIN = ("train", "training")
HELD_OUT = ("val", "validation", "valid", "dev", "eval", "evaluation", "test", "testing")
_SPLIT = re.compile(rf"({'|'.join((*TRAIN, *HELD_OUT))})(?:[-_.]?\d.*)?")
"""``train``, and a part of it as on the Hugging Face hub: ``train-00000-of-00002``."""


def read_splits(
    root: Path, field: str, columns: Sequence[str], label: str | None = None
) -> tuple[pa.Table, pa.Table | None]:
    """These columns of the training table, and of the held-out one where there is one.

    Args:
        root: a file; a folder with ``train.*`` and ``val.*`` or ``test.*``, also in its folder ``data``; a
            folder of ``save_to_disk``.
        field: of the spec, for messages.
        columns: names.
        label: the one with names of classes: ``01`` and ``1`` are two, ``1.0`` is 1.

    Raises:
        DataError: there is no table, it cannot be read, or lacks a column.
    """
    if not root.exists():
        raise DataError(f"{_place(field, root)}: there is no such file or folder")
    train, test = _parts(root, field)
    found = _read(train, columns, root, label)
    return found, _read(test, columns, root, label) if test else None


def column_names(root: Path) -> list[str] | None:
    """The columns of the training table; None where there is no table, as in a folder of text files."""
    if root.is_file() and _kind(root) not in _READERS:
        return None
    try:
        train, _ = _parts(root, "")
    except DataError:
        return None
    return list(_whole(train[0]).column_names)


def _parts(root: Path, field: str) -> tuple[list[Path], list[Path]]:
    """The files, or folders of Arrow files, of the two splits."""
    if root.is_file() or _is_saved(root):
        return [root], []
    for folder in (root, root / "data"):
        tables = [path for path in sorted(folder.glob("*")) if _is_table(path)]
        named = {path: _SPLIT.fullmatch(_stem(path)) for path in tables}
        splits = {path: match[1] for path, match in named.items() if match}
        train = [path for path, split in splits.items() if split in TRAIN]
        first = next((name for name in HELD_OUT if name in splits.values()), "")
        if train:
            return train, [path for path, split in splits.items() if split == first]
        if len(tables) == 1:
            return tables, []
    raise DataError(
        f"{_place(field, root)}: name a file ({', '.join(_READERS)}), a folder with train.* and val.* "
        "or test.*, or one that save_to_disk of Hugging Face datasets wrote"
    )


def _place(field: str, root: Path) -> str:
    """``data.root = rows.csv``; a file that is no field's is named alone."""
    return str(root) if field in ("", str(root)) else f"{field} = {root}"


def _is_saved(path: Path) -> bool:
    return (path / "state.json").is_file()


def _is_table(path: Path) -> bool:
    return not hidden(path.name) and (_is_saved(path) or (path.is_file() and _kind(path) in _READERS))


def _kind(path: Path) -> str:
    return Path(path.name.lower().removesuffix(".gz")).suffix


def _stem(path: Path) -> str:
    return path.name.lower().partition(".")[0]


def _read(parts: Sequence[Path], columns: Sequence[str], root: Path, label: str | None) -> pa.Table:
    tables = [_with_label(_one(part, columns), part, label) for part in parts]
    try:
        return pa.concat_tables(tables, promote_options="permissive").combine_chunks()
    except pa.ArrowException as error:
        raise DataError(f"{root}: its files have other columns or types: {_line(error)}") from error


def _whole(path: Path) -> pa.Table:
    read = _saved if path.is_dir() else _READERS.get(_kind(path))
    if read is None:
        raise DataError(f"{path}: is none of {', '.join(_READERS)}")
    try:
        return read(path)
    except (pa.ArrowException, OSError, EOFError, ValueError, KeyError, TypeError) as error:
        raise DataError(f"{path}: cannot be read: {_line(error)}") from error


def _one(path: Path, columns: Sequence[str]) -> pa.Table:
    table = _whole(path)
    for name in columns:
        if name not in table.column_names:
            question = did_you_mean(name, table.column_names)
            message = f"{path}: there is no column {name!r}; it has {', '.join(table.column_names)}"
            raise DataError(f"{message}; {question}" if question else message)
    if not table.num_rows:
        raise DataError(f"{path}: has no rows")
    return table.select(list(dict.fromkeys(columns)))


def _with_label(table: pa.Table, path: Path, label: str | None) -> pa.Table:
    """The labels as they are written, where a number would lose a zero, and whole numbers as such."""
    if label is None:
        return table
    place, labels = table.column_names.index(label), table.column(label)
    if pa.types.is_integer(labels.type) and _kind(path) in (".csv", ".tsv"):
        written = _csv(path, as_text=label).column(label)
        if not written.equals(labels.cast(pa.string())):
            return table.set_column(place, label, written)
    if pa.types.is_floating(labels.type) and (whole := _whole_numbers(labels)) is not None:
        return table.set_column(place, label, whole)
    return table


def _whole_numbers(labels: pa.ChunkedArray) -> pa.ChunkedArray | None:
    try:
        return labels.cast(pa.int64())
    except pa.ArrowInvalid:  # 1.5, nan
        return None


def _csv(path: Path, as_text: str | None = None) -> pa.Table:
    opened = gzip.open if path.name.lower().endswith(".gz") else open
    with opened(path, "rb") as file:
        line = file.readline()
        if reason := why_no_text(line):
            raise ValueError(reason)
    separator, names = header_of(line, tabs=_kind(path) == ".tsv")
    text = {} if as_text is None else {as_text: pa.string()}
    table = parse(path, separator, names, types=text, wanted=list(text) or None)
    if any(map(pa.types.is_binary, table.schema.types)):
        with opened(path, "rb") as file:
            raise ValueError(why_no_text(file.read()) or "a cell is not text")
    return table


def _json(path: Path) -> pa.Table:
    """JSON lines, or one array of objects."""
    content = gzip.decompress(path.read_bytes()) if path.name.lower().endswith(".gz") else path.read_bytes()
    if content.lstrip()[:1] == b"[":
        return pa.Table.from_pylist(json.loads(content))
    return pyarrow.json.read_json(pa.BufferReader(content))


def _arrow(path: Path) -> pa.Table:
    source = pa.memory_map(str(path))
    try:
        return pa.ipc.open_stream(source).read_all()
    except pa.ArrowInvalid:
        return pa.ipc.open_file(source).read_all()


def _saved(folder: Path) -> pa.Table:
    state: dict[str, Any] = json.loads((folder / "state.json").read_bytes())
    if state.get("_indices_files"):
        raise ValueError("rows were selected after it was made: call flatten_indices() before save_to_disk")
    return pa.concat_tables([_arrow(folder / part["filename"]) for part in state["_data_files"]])


_READERS: dict[str, Callable[[Path], pa.Table]] = dict(
    zip(TABLES, (_csv, _csv, pyarrow.parquet.read_table, _json, _json, _json, _arrow), strict=True)
)


def _line(error: Exception) -> str:
    return " ".join(str(error).split()) or type(error).__name__
