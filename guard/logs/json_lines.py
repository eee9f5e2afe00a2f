"""JSON lines: a record a line, evaluations between."""

from __future__ import annotations

import json
import re
from typing import Any

from guard.logs.log import Lines, Log, TraceError, names_of
from guard.logs.source import Source

_STARTS = re.compile(r'\s*\{\s*("|$)')


def read_json_lines(source: Source, _: str | None = None) -> Log | None:
    """A log whose first line is a JSON object."""
    head = source.head
    if not head or not _STARTS.match(head[0]) or object_in(head[0]) is None:
        return None
    if len(head) == 1 and any(
        isinstance(value, list | dict) and len(value) > 1 for value in (object_in(head[0]) or {}).values()
    ):
        return None  # a document in one line
    kind = "JSON lines"
    names = names_of(_lines(source))
    if {"iteration", "total_loss"} <= set(names):
        kind = "detectron2 metrics.json"
    elif {"mode", "iter", "epoch"} <= set(names):
        kind = "mm* JSON log"
    elif {"_step", "_timestamp"} <= set(names):
        kind = "W&B history"
    return Log(kind, names, lambda: _lines(source))


def _lines(source: Source) -> Lines:
    for line, text in enumerate(source.lines(), start=1):
        if not text.lstrip().startswith(("{", "[")):
            continue  # printed between
        try:
            record = json.loads(text)
        except (ValueError, RecursionError) as error:
            if line > 1 and not text.endswith(("\n", "\r")):
                return  # the last line of a run that was killed
            raise TraceError(source.path, line, f"not JSON: {error}") from error
        if not isinstance(record, dict):
            raise TraceError(source.path, line, "not a JSON object: write one object a line")
        yield line, flat(record)


def flat(record: dict[str, Any]) -> dict[str, Any]:
    """``{"train": {"loss": 1.0}}`` as ``train/loss``, at any depth."""
    while any(isinstance(value, dict) and value for value in record.values()):
        found: dict[str, Any] = {}
        for key, value in record.items():
            inner = value.items() if isinstance(value, dict) else ()
            found |= {f"{key}/{name}": one for name, one in inner} or {key: value}
        record = found
    return record


def object_in(text: str) -> dict[str, Any] | None:
    """The JSON object of a line; None where it is no such thing."""
    try:
        found = json.loads(text)
    except (ValueError, RecursionError):
        return None
    return found if isinstance(found, dict) else None
