"""What would the detector have done on this log? Reads CSV or JSON lines, optionally gzipped, row by row."""

from __future__ import annotations

import csv
import gzip
import json
import math
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, NamedTuple, TextIO

from guard.config import DetectConfig
from guard.decide.detector import SpikeDetector
from guard.records import Verdict
from guard.rows import strict

ALARMS = frozenset({"spike", "nonfinite"})
"""The verdicts on which the guard rolls back, or skips in any case."""
_JSON_LINES = frozenset({".jsonl", ".ndjson", ".json"})
_GZIP_MAGIC = b"\x1f\x8b"


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


@dataclass(slots=True)
class ReplayResult:
    """The detector's verdicts. The lists hold ``step, verdict, signal, score, baseline``."""

    rows: int = 0
    suspects: int = 0
    alarms: list[dict[str, Any]] = field(default_factory=list)
    """Spikes and non-finite values: each would have cost a rollback or a skip."""
    trends: list[dict[str, Any]] = field(default_factory=list)
    """Drift and vanishing gradients, which the guard reports; it applies the step."""

    def add(self, step: float, verdict: Verdict) -> None:
        self.rows += 1
        self.suspects += verdict.kind == "suspect"
        if verdict.kind in ("ok", "suspect"):
            return
        entry = {
            "step": int(step) if step.is_integer() else step,
            "verdict": verdict.kind,
            "signal": verdict.signal,
            "score": verdict.score,
            "baseline": verdict.baseline,
        }
        (self.alarms if verdict.kind in ALARMS else self.trends).append(entry)

    def to_dict(self) -> dict[str, Any]:
        """Strict JSON: an infinite score is the string ``inf``."""
        document: dict[str, Any] = strict(asdict(self))
        return document


def replay(
    path: str | Path,
    config: DetectConfig | None = None,
    *,
    step: str = "step",
    loss: str = "loss",
    grad_norm: str = "grad_norm",
) -> ReplayResult:
    """Shows every row of a log to a fresh detector.

    Args:
        path: a CSV file with a header, or JSON lines (.jsonl, .ndjson, .json); gzip is recognized.
        config: the detector's thresholds.
        step: name of the column with the step; without such a column rows are counted from 0.
        loss: name of the column with the loss.
        grad_norm: name of the column with the gradient norm; without it the loss is judged alone.

    Raises:
        TraceError: a row is malformed, or there is no loss column.
        OSError: the file cannot be opened.
    """
    detector = SpikeDetector(config)
    result = ReplayResult()
    for row in read_trace(path, step=step, loss=loss, grad_norm=grad_norm):
        result.add(row.step, detector.observe(row.loss, row.grad_norm))
    return result


def read_trace(
    path: str | Path, *, step: str = "step", loss: str = "loss", grad_norm: str = "grad_norm"
) -> Iterator[Row]:
    """The rows of a log, one by one; arguments and errors as for ``replay``."""
    path = Path(path)
    columns = (step, loss, grad_norm)
    suffixes = [suffix for suffix in path.suffixes if suffix != ".gz"]
    reader: Callable[[Path, TextIO, tuple[str, str, str]], Iterator[Row]] = (
        _json_rows if suffixes and suffixes[-1] in _JSON_LINES else _csv_rows
    )
    with _open(path) as file:
        yield from reader(path, file, columns)


@contextmanager
def _open(path: Path) -> Iterator[TextIO]:
    with path.open("rb") as file:
        zipped = file.read(len(_GZIP_MAGIC)) == _GZIP_MAGIC
    opener: Callable[..., TextIO] = gzip.open if zipped else open
    with opener(path, "rt", encoding="utf-8-sig", newline="") as text:
        try:
            yield text
        except (UnicodeDecodeError, EOFError, zlib.error, gzip.BadGzipFile) as error:
            raise TraceError(path, 0, f"not readable as text: {error}") from error


def _csv_rows(path: Path, file: TextIO, columns: tuple[str, str, str]) -> Iterator[Row]:
    reader = csv.reader(file, strict=True)
    try:
        header = [name.strip() for name in next(reader, [])]
        at_step, at_loss, at_norm = (header.index(name) if name in header else None for name in columns)
        if at_loss is None:
            found = ", ".join(header) or "nothing"
            raise TraceError(path, 1, f"no column {columns[1]!r}: name one of {found}")
        for count, cells in enumerate(filter(None, reader)):
            if len(cells) != len(header):
                raise TraceError(
                    path, reader.line_num, f"{len(cells)} cells under a header of {len(header)}: quote commas"
                )
            yield Row(
                float(count) if at_step is None else _step(path, reader.line_num, cells[at_step]),
                _number(path, reader.line_num, columns[1], cells[at_loss]),
                None if at_norm is None else _number(path, reader.line_num, columns[2], cells[at_norm]),
            )
    except csv.Error as error:
        raise TraceError(path, reader.line_num, f"not CSV: {error}") from error


def _json_rows(path: Path, file: TextIO, columns: tuple[str, str, str]) -> Iterator[Row]:
    """Objects without loss and norm are other records, such as evaluations: not counted."""
    step, loss, norm = columns
    count = line = 0
    for line, text in enumerate(file, start=1):
        if not text.strip():
            continue
        try:
            record = json.loads(text)
        except ValueError as error:
            raise TraceError(path, line, f"not JSON: {error}") from error
        if not isinstance(record, dict):
            raise TraceError(path, line, "not a JSON object: write one object a line")
        if record.get(loss) is None and record.get(norm) is None:
            continue
        yield Row(
            float(count) if record.get(step) is None else _step(path, line, record[step]),
            _number(path, line, loss, record.get(loss)),
            _number(path, line, norm, record.get(norm)),
        )
        count += 1
    if line and not count:
        raise TraceError(path, 0, f"no record has {loss!r} or {norm!r}: name the fields that hold them")


def _number(path: Path, line: int, column: str, cell: object) -> float | None:
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
