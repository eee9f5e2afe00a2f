"""Reads the log of a training, whoever wrote it, as rows of step, loss and gradient norm.

CSV with a header, JSON lines, one JSON document with a list of records (``trainer_state.json`` of Hugging
Face), and printed lines such as ``iter 200: loss 2.31`` (nanoGPT, Megatron-LM). Gzip is recognized.
"""

from __future__ import annotations

import csv
import gzip
import json
import math
import re
import zlib
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple, TextIO

_JSON = frozenset({".jsonl", ".ndjson", ".json"})
_GZIP_MAGIC = b"\x1f\x8b"
_USUAL = {
    "step": ("step", "global_step", "_step", "trainer_global_step", "iteration", "iter", "iterations"),
    "loss": ("loss", "train_loss", "train_loss_step", "training_loss", "lm_loss", "loss_train", "total_loss"),
    "grad_norm": ("grad_norm", "gradient_norm", "gradnorm", "gnorm", "train_grad_norm", "total_grad_norm"),
}
"""How common tools call the columns, in order of preference."""
_PRINTED = re.compile(
    r"([A-Za-z][A-Za-z_/]*(?: [A-Za-z_/]+)*)['\"]?(?:\s*[:=]\s*|\s+)"
    r"([-+]?(?:\d+\.?\d*(?:[eE][-+]?\d+)?|nan|inf))(?![\w.])",
)
"""A name and its number in a printed line."""

Record = Mapping[str, Any]


class TraceError(ValueError):
    """A log that cannot be read; names the file and the line (0: the file as a whole)."""

    def __init__(self, path: Path, line: int, problem: str) -> None:
        super().__init__(f"{path}:{line}: {problem}" if line else f"{path}: {problem}")
        self.path = path
        self.line = line


class Row(NamedTuple):
    """One logged step; None is what was not logged."""

    step: float
    loss: float | None
    grad_norm: float | None


class TraceReader(Iterator[Row]):
    """The rows of a log, one by one.

    Args:
        path: of the log.
        step, loss, grad_norm: the names of the columns; None for any of the usual names. Without a column of
            the step, rows are counted from 0; without one of the gradient norm the loss is judged alone.

    Attributes:
        columns: the column of each, None where there is none; complete once the last row was read.

    Raises:
        TraceError: a row is malformed, or there is no such column; in ``__next__``.
        OSError: the file cannot be opened; in ``__next__``.
    """

    def __init__(
        self,
        path: str | Path,
        *,
        step: str | None = None,
        loss: str | None = None,
        grad_norm: str | None = None,
    ) -> None:
        self.path = Path(path)
        self.columns: dict[str, str | None] = dict.fromkeys(_USUAL)
        self._given = {"step": step, "loss": loss, "grad_norm": grad_norm}
        self._rows = self._read()

    def __next__(self) -> Row:
        return next(self._rows)

    def _read(self) -> Iterator[Row]:
        with _open(self.path) as file:
            wanted = _USUAL["loss"] if self._given["loss"] is None else (self._given["loss"],)
            yield from self._rows_of(*_records(self.path, file, wanted))

    def _rows_of(self, header: list[str], records: Iterable[tuple[int, Record]]) -> Iterator[Row]:
        self._choose(header)
        step, loss, norm = (self.columns[name] for name in _USUAL)
        count = 0
        for line, record in records:
            cells = [None if name is None else record.get(name) for name in (loss, norm)]
            if all(cell is None or cell == "" for cell in cells):
                continue  # another record, such as an evaluation
            cell = None if step is None else record.get(step)
            yield Row(
                float(count) if cell is None else _step(self.path, line, cell),
                _number(self.path, line, loss, cells[0]),
                _number(self.path, line, norm, cells[1]),
            )
            count += 1

    def _choose(self, header: list[str]) -> None:
        """The columns among the names that the log has."""
        for signal, given in self._given.items():
            self.columns[signal] = _find(
                header, given or signal, _USUAL[signal] if given is None else (given,)
            )
            if given is not None and self.columns[signal] is None:
                raise self._missing(header, given, f"--{signal.replace('_', '-')}")
        if self.columns["loss"] is None and self.columns["grad_norm"] is None:
            raise self._missing(header, "loss", "--loss")

    def _missing(self, header: list[str], name: str, option: str) -> TraceError:
        found = ", ".join(header) or "nothing"
        return TraceError(self.path, 0, f"no column {name!r}: name one of {found} with {option}")


def _find(header: list[str], name: str, names: tuple[str, ...]) -> str | None:
    if name in header:
        return name
    plain = {_plain(column): column for column in reversed(header)}
    return next((plain[_plain(usual)] for usual in names if _plain(usual) in plain), None)


def _plain(name: str) -> str:
    """``train/Loss`` and ``train_loss`` are one name."""
    return re.sub(r"[^a-z0-9]+", "_", name.lower()).strip("_")


@contextmanager
def _open(path: Path) -> Iterator[TextIO]:
    if "tfevents" in path.name:
        raise TraceError(
            path,
            0,
            "a TensorBoard event file: download its scalars as CSV from TensorBoard's page, and name the "
            "columns with --step Step --loss Value",
        )
    with path.open("rb") as file:
        zipped = file.read(len(_GZIP_MAGIC)) == _GZIP_MAGIC
    opener: Any = gzip.open if zipped else open
    with opener(path, "rt", encoding="utf-8-sig", newline="") as text:
        try:
            yield text
        except (UnicodeDecodeError, EOFError, zlib.error, gzip.BadGzipFile) as error:
            raise TraceError(path, 0, f"not readable as text: {error}") from error


def _records(
    path: Path, file: TextIO, wanted: tuple[str, ...]
) -> tuple[list[str], Iterable[tuple[int, Record]]]:
    """The names in a log, and its records with their lines; ``wanted``: how the loss may be called."""
    suffixes = [suffix for suffix in path.suffixes if suffix != ".gz"]
    suffix = suffixes[-1].lower() if suffixes else ""
    first = file.readline()
    file.seek(0)
    if suffix in _JSON or re.match(r'\s*\{\s*("|$)', first):
        return _json(path, file, first, wanted)
    if suffix == ".csv" or _find(_header(first), "", wanted):
        return _csv(path, file)
    names = _names((record for _, record in _printed(file)), wanted)
    file.seek(0)
    return (names, _printed(file)) if names else _csv(path, file)


def _names(records: Iterable[Record], wanted: tuple[str, ...]) -> list[str]:
    """The names in the records that have the loss: evaluations may count steps under another name."""
    everything: dict[str, None] = {}
    beside: dict[str, dict[str, None]] = {}
    plain = {_plain(name) for name in wanted}
    for record in records:
        everything.update(dict.fromkeys(record))
        for name in record:
            if _plain(name) in plain:
                beside.setdefault(name, {}).update(dict.fromkeys(record))
    loss = _find(list(beside), "", wanted)
    return list(everything if loss is None else beside[loss])


def _header(line: str) -> list[str]:
    return [name.strip() for name in next(csv.reader([line.strip("\r\n")]), [])]


def _csv(path: Path, file: TextIO) -> tuple[list[str], Iterator[tuple[int, Record]]]:
    reader = csv.reader(file, strict=True)
    header = [name.strip() for name in next(reader, [])]

    def rows() -> Iterator[tuple[int, Record]]:
        try:
            for cells in filter(None, reader):
                if len(cells) != len(header):
                    problem = f"{len(cells)} cells under a header of {len(header)}: quote commas"
                    raise TraceError(path, reader.line_num, problem)
                yield reader.line_num, dict(zip(header, cells, strict=True))
        except csv.Error as error:
            raise TraceError(path, reader.line_num, f"not CSV: {error}") from error

    return header, rows()


def _json(
    path: Path, file: TextIO, first: str, wanted: tuple[str, ...]
) -> tuple[list[str], Iterable[tuple[int, Record]]]:
    """One document with a list of records, or a record a line; read twice, since names may come late."""
    if not _is_json(first):
        records = _history(path, file)
        return _names(records, wanted), [(0, record) for record in records]
    names = _names((record for _, record in _json_lines(path, file)), wanted)
    file.seek(0)
    return names, _json_lines(path, file)


def _is_json(text: str) -> bool:
    try:
        json.loads(text)
    except ValueError:
        return False
    return True


def _history(path: Path, file: TextIO) -> list[Record]:
    try:
        document = json.load(file)
    except (ValueError, RecursionError) as error:
        line = getattr(error, "lineno", 1)
        raise TraceError(path, line, f"not JSON: {error}") from error
    records = document.get("log_history") if isinstance(document, dict) else document
    if not isinstance(records, list) or not all(isinstance(record, dict) for record in records):
        raise TraceError(path, 0, "has no list of records: give JSON lines, or a trainer_state.json")
    return records


def _json_lines(path: Path, file: TextIO) -> Iterator[tuple[int, Record]]:
    for line, text in enumerate(file, start=1):
        if not text.strip():
            continue
        try:
            record = json.loads(text)
        except (ValueError, RecursionError) as error:
            raise TraceError(path, line, f"not JSON: {error}") from error
        if not isinstance(record, dict):
            raise TraceError(path, line, "not a JSON object: write one object a line")
        yield line, record


def _printed(file: TextIO) -> Iterator[tuple[int, Record]]:
    """The names and numbers of each line."""
    for line, text in enumerate(file, start=1):
        yield line, dict(reversed(_PRINTED.findall(text)))


def _number(path: Path, line: int, column: str | None, cell: object) -> float | None:
    if cell is None or (isinstance(cell, str) and not cell.strip()):
        return None
    try:
        if isinstance(cell, bool) or not isinstance(cell, (str, int, float)):
            raise TypeError
        return float(cell)
    except (TypeError, ValueError, OverflowError):
        raise TraceError(
            path, line, f"{column} is {cell!r}, not a number: write a number, nan or inf, or leave it empty"
        ) from None


def _step(path: Path, line: int, cell: object) -> float:
    number = _number(path, line, "step", cell)
    if number is None or not math.isfinite(number):
        raise TraceError(path, line, f"step is {cell!r}, not a number: number every row")
    return number
