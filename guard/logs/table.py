"""CSV and TSV with a header."""

from __future__ import annotations

import csv
import re
from collections.abc import Iterable, Iterator

from guard.logs.columns import USUAL, find, find_loss
from guard.logs.figures import is_empty, number, with_point
from guard.logs.log import Lines, Log, TraceError
from guard.logs.long_table import is_long, pivoted
from guard.logs.packed import PACKED
from guard.logs.source import Source

_DELIMITERS = ",\t;|"
_SPACES = " "
_COMMENTS = ("#", "sep=")
"""Not part of the table; the second names the separator for Excel."""
_RULE = re.compile(r"\s*:?-+:?\s*")
"""A cell of the line below the header of a Markdown table."""
_SUM = " + "


def read_table(source: Source, loss: str | None = None) -> Log | None:
    """A first line of names, with as many numbers below it."""
    lines = _without_comments([line.strip("\r\n") for line in source.head])
    first = lines[0] if lines else ""
    delimiter = max(_DELIMITERS, key=first.count)
    if delimiter not in first and _is_spaced(lines):
        delimiter, first = _SPACES, _SPACES.join(first.split())
    header = _cells(first, delimiter)
    suffix = next((s.lower() for s in reversed(source.path.suffixes) if s not in PACKED), "")
    if not header or (suffix not in (".csv", ".tsv") and not _is_header(header, lines[1:2], delimiter, loss)):
        return None
    kind, columns = _kind(header, suffix == ".tsv" or delimiter == "\t")
    parts = columns.get("loss", "").split(_SUM) if _SUM in columns.get("loss", "") else []

    def records() -> Lines:
        for line, cells in _rows(source, header, delimiter):
            found = cells if delimiter == "," else map(with_point, cells)
            record = dict(zip(header, found, strict=True))
            if parts:
                record[_SUM.join(parts)] = _sum([record[part] for part in parts])
            yield line, record

    log = Log(kind, [*header, *([_SUM.join(parts)] if parts else [])], records, columns, uniform=True)
    return pivoted(log) if loss is None and is_long(header) else log


def _without_comments(head: list[str]) -> list[str]:
    """With the header that is one above numbers, as ``numpy.savetxt`` and gnuplot have it."""
    first = next((at for at, line in enumerate(head) if not line.startswith(_COMMENTS)), len(head))
    lines = [line for line in head[first:] if not line.startswith(_COMMENTS)]
    above = head[first - 1].lstrip("# ") if lines and first else ""
    if not above or len(above.split()) != len(lines[0].split()):
        return lines
    return [above, *lines] if all(map(_is_number, re.split(r"[\s,;]+", lines[0].strip()))) else lines


def _sum(cells: list[str]) -> str:
    """Their sum, else the cell that is no number."""
    wrong = next((cell for cell in cells if is_empty(cell) or not _is_number(cell)), None)
    return str(sum(map(number, cells))) if wrong is None else wrong


def _cells(line: str, delimiter: str) -> list[str]:
    try:
        return [name.strip() for name in next(csv.reader([line], delimiter=delimiter), [])]
    except csv.Error:  # a line too long for a cell
        return []


def _is_spaced(lines: list[str]) -> bool:
    """Names above numbers, separated by spaces; fastai's table ends with a time."""
    names, below = (line.split() for line in (*lines[:2], "", "")[:2])
    numbers = [cell for cell in below if _is_number(cell)]
    return (
        len(names) == len(below) > 1
        and not any(map(_is_number, names))
        and len(numbers) >= len(below) - (find_loss(names) is not None)
    )


def _is_header(header: list[str], below: list[str], delimiter: str, loss: str | None) -> bool:
    if find(header, loss or "loss", (loss,) if loss else USUAL["loss"]) is not None or is_long(header):
        return True
    names = all(name and not name[0].isdigit() for name in header) and len(header) > 1
    return names and bool(below) and all(_is_number(c) for c in _cells(below[0], delimiter))


def _is_number(cell: str) -> bool:
    try:
        return is_empty(cell) or number(with_point(cell)) is not None
    except ValueError:
        return False


def _rows(source: Source, header: list[str], delimiter: str) -> Iterator[tuple[int, list[str]]]:
    ended = True

    def noted() -> Iterator[str]:
        nonlocal ended
        for line in source.lines():
            ended = line.endswith(("\n", "\r"))
            yield "\n" if line.startswith(_COMMENTS) else line

    lines: Iterable[str] = noted()
    if delimiter == _SPACES:
        lines = (_SPACES.join(line.split()) + "\n" for line in lines)
    reader = csv.reader(lines, delimiter=delimiter, strict=True)
    try:
        for cells in filter(None, reader):
            if [cell.strip() for cell in cells] == header:
                continue  # again where a run was resumed
            if any(cells) and all(_RULE.fullmatch(cell) for cell in cells if cell):
                continue
            if len(cells) < len(header) and not ended:
                return  # the last line of a run that was killed
            if len(cells) != len(header):
                problem = f"{len(cells)} cells under a header of {len(header)}: quote commas"
                raise TraceError(source.path, reader.line_num, problem)
            yield reader.line_num, cells
    except csv.Error as error:
        raise TraceError(source.path, reader.line_num, f"not CSV: {error}") from error


def _kind(header: list[str], tabs: bool) -> tuple[str, dict[str, str]]:
    """Whose table it is, and what that tool calls the columns."""
    if header == ["Wall time", "Step", "Value"]:
        return "TensorBoard CSV", {"step": "Step", "loss": "Value"}
    if parts := _parts(header):
        return "ultralytics results.csv", {"step": "epoch", "loss": _SUM.join(parts)}
    if any(name.endswith("__MIN") for name in header):
        return "W&B export", _of_one_run(header)
    step = find(header, "step", USUAL["step"])
    if step is None and "epoch" in header:
        return "CSV with a row an epoch (Keras)", {"step": "epoch"}
    if step is not None and "epoch" in header and any(n.endswith(("_step", "_epoch")) for n in header):
        return "Lightning metrics.csv", {}
    if "_step" in header and "_timestamp" in header:
        return "W&B history", {"step": "_step"}
    return ("TSV" if tabs else "CSV"), {}


def _parts(header: list[str]) -> list[str]:
    """The losses that ultralytics adds up, which differ by task."""
    if "epoch" not in header or not any(name.startswith(("metrics/", "val/")) for name in header):
        return []
    return [name for name in header if name.startswith("train/") and name.endswith("_loss")]


def _of_one_run(header: list[str]) -> dict[str, str]:
    """The first run's columns of W&B, called ``run - name``."""
    runs: dict[str, dict[str, str]] = {}
    for name in header:
        run, dash, metric = name.rpartition(" - ")
        if dash and not metric.endswith(("__MIN", "__MAX")):
            runs.setdefault(run, {})[metric] = name
    for metrics in runs.values():
        loss, norm = find_loss(list(metrics)), find(list(metrics), "grad_norm", USUAL["grad_norm"])
        found = {"loss": loss, "grad_norm": norm}
        if loss or norm:
            return {signal: metrics[name] for signal, name in found.items() if name}
    return {}
