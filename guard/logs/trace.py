"""Reads the log of a training, whoever wrote it, as rows of step, loss and gradient norm."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Iterator
from difflib import get_close_matches
from pathlib import Path

from guard.logs.columns import USUAL, find, find_loss, is_evaluation, plain
from guard.logs.epochs import Epochs
from guard.logs.figures import is_empty, number
from guard.logs.kinds import recognize
from guard.logs.log import Log, Record, Row, TraceError
from guard.logs.pattern import read_pattern
from guard.logs.source import Source

_LISTED = 40
_LONGEST_CELL = 60
_PHASES = ("mode", "split", "phase", "stage", "type", "event", "subset")


class TraceReader(Iterator[Row]):
    """The rows of a log, one by one.

    Args:
        path: of a file, of a folder (TensorBoard, MLflow), or ``-``: standard input. The format is recognized
            by its content.
        step, loss, grad_norm: the names of the columns; None for any of the usual names. Without a column of
            the step, rows are counted from 0; without one of the gradient norm the loss is judged alone.
        regex: reads each line, with groups named ``step``, ``loss``, ``grad_norm``.

    Attributes:
        kind: what the log was recognized as; complete, as ``columns``, once the first row was read.
        columns: the column of each, None where there is none.

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
        regex: str | None = None,
    ) -> None:
        self._source = Source(path)
        self.path = self._source.path
        self.kind = ""
        self.columns: dict[str, str | None] = dict.fromkeys(USUAL)
        self._given = {"step": step, "loss": loss, "grad_norm": grad_norm}
        self._regex = regex
        self._rows = self._read()

    def __next__(self) -> Row:
        return next(self._rows)

    def _read(self) -> Iterator[Row]:
        if self._regex is not None:
            log = read_pattern(self._source, self._regex)
        else:
            log = recognize(self._source, self._given["loss"])
        self.kind = log.kind
        self._choose(log)
        yield from self._rows_of(log)

    def _rows_of(self, log: Log) -> Iterator[Row]:
        step, loss, norm = (self.columns[name] for name in USUAL)
        epochs = Epochs(find(log.names, "epoch", ("epoch",)))
        count = 0
        for line, record in log.records():
            cells = [None if name is None else record.get(name) for name in (loss, norm)]
            if all(is_empty(cell) for cell in cells) or _is_of_evaluation(record):
                continue
            cell = None if step is None else record.get(step)
            if cell is None and step is not None:
                continue  # a summary at the end
            yield Row(
                float(count) if cell is None else epochs.counted_on(_step(self.path, line, cell), record),
                _number(self.path, line, loss, cells[0]),
                _number(self.path, line, norm, cells[1]),
            )
            count += 1
        if not count:
            problem = f"{log.kind} without a row: nothing was logged yet"
            raise TraceError(self.path, 0, problem if self._regex is None else "no line matches --regex")

    def _choose(self, log: Log) -> None:
        """The columns among the names that the log has."""
        self.columns["loss"] = self._column(log, "loss", log.names)
        beside = _beside(log, self.columns["loss"])
        usual = [name for name, count in beside.items() if 2 * count >= max(beside.values())]
        self.columns["step"] = self._column(log, "step", usual)
        self.columns["grad_norm"] = self._column(log, "grad_norm", list(beside))
        if self.columns["step"] is None:
            self.columns["step"] = _row_an_epoch(log, self.columns["loss"], beside)
        if self.columns["loss"] is None and self.columns["grad_norm"] is None:
            raise self._missing(log.names, "loss", "--loss")

    def _column(self, log: Log, signal: str, names: list[str]) -> str | None:
        given = self._given[signal]
        if given is not None:
            found = find(names, given, (given,)) or find(log.names, given, (given,))
            if found is None:
                raise self._missing(log.names, given, f"--{signal.replace('_', '-')}")
            return found
        if signal in log.columns:
            return log.columns[signal]
        return find_loss(names) if signal == "loss" else find(names, signal, USUAL[signal])

    def _missing(self, header: list[str], name: str, option: str) -> TraceError:
        listed = [*header[:_LISTED], "..."] if len(header) > _LISTED else header
        near = {plain(column): column for column in header}
        close = get_close_matches(plain(name), near, n=1)
        hint = f"; did you mean {near[close[0]]!r}?" if close else ""
        found = (
            f"name one of {', '.join(listed)} with {option}"
            if header
            else "there are no names and numbers; --regex reads any line"
        )
        return TraceError(self.path, 0, f"no column {name!r}: {found}{hint}")


def _beside(log: Log, loss: str | None) -> Counter[str]:
    """How often each name comes with the loss: evaluations may count steps under another name."""
    if loss is None or loss not in log.names or log.uniform:
        return Counter(log.names)
    found = Counter(n for _, record in log.records() if not is_empty(record.get(loss)) for n in record)
    return found or Counter(log.names)


def _row_an_epoch(log: Log, loss: str | None, names: Iterable[str]) -> str | None:
    """The column of the epoch, if each row is one."""
    epoch = find(list(names), "epoch", ("epoch",))
    if epoch is None:
        return None
    last = -math.inf
    for _, record in log.records():
        if loss is not None and is_empty(record.get(loss)):
            continue
        try:
            at = number(record.get(epoch))
        except (TypeError, ValueError, OverflowError):
            return None
        if not (at > last and at.is_integer()):
            return None
        last = at
    return epoch


def _is_of_evaluation(record: Record) -> bool:
    return any(is_evaluation(str(record[phase])) for phase in _PHASES if phase in record)


def _number(path: Path, line: int, column: str | None, cell: object) -> float | None:
    if is_empty(cell):
        return None
    try:
        return number(cell)
    except (TypeError, ValueError, OverflowError):
        raise TraceError(
            path,
            line,
            f"{column} is {_shown(cell)}, not a number: write a number, nan or inf, or leave it empty",
        ) from None


def _step(path: Path, line: int, cell: object) -> float:
    found = _number(path, line, "step", cell)
    if found is None or not math.isfinite(found):
        raise TraceError(path, line, f"step is {_shown(cell)}, not a number: number every row")
    return found


def _shown(cell: object) -> str:
    """A cell as it was read, cut where it is long."""
    text = repr(cell)
    return text if len(text) <= _LONGEST_CELL else f"{text[:_LONGEST_CELL]}..."
