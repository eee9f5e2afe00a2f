"""One JSON document: a list of records, or columns."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from guard.logs.json_lines import flat
from guard.logs.log import Log, Record, TraceError, names_of
from guard.logs.source import Source

_LISTS = {"log_history": "Hugging Face trainer_state.json", "history": "JSON with a history"}
_WRONG = "has no list of records: give JSON lines, a list of objects, or a trainer_state.json of Hugging Face"


def read_document(source: Source, _: str | None = None) -> Log | None:
    """A file that starts as JSON does, or is called so."""
    first = next(iter(source.head), "").lstrip()
    suffixes = {suffix.lower() for suffix in source.path.suffixes}
    if not suffixes & {".json", ".jsonl", ".ndjson"} and not _starts_a_document(source, first):
        return None
    try:
        document = json.loads("".join(source.lines()))
    except (ValueError, RecursionError) as error:
        raise TraceError(source.path, getattr(error, "lineno", 1), f"not JSON: {error}") from error
    kind, records = _records(document)
    if records is None:
        raise TraceError(source.path, 0, _WRONG)
    lines = [(0, record) for record in records]
    return Log(kind, names_of(lines), lambda: iter(lines), {"loss": "value"} if "TensorBoard" in kind else {})


def _starts_a_document(source: Source, first: str) -> bool:
    """``[`` also starts a printed line."""
    if first.startswith("{"):
        return first.strip() == "{" or first.startswith('{"')
    if not first.startswith("["):
        return False
    try:
        json.loads("".join(source.lines()))
    except (ValueError, RecursionError):
        return False
    return True


def _records(document: Any) -> tuple[str, list[Record] | None]:
    kind = "JSON array"
    if isinstance(document, dict):
        kind, document = next(
            ((kind, document[name]) for name, kind in _LISTS.items() if name in document),
            ("JSON columns", _longest_list(document) or document),
        )
    if isinstance(document, dict):
        return kind, _from_columns(document)
    if not isinstance(document, list) or not document:
        return kind, None
    if all(isinstance(entry, list) and len(entry) == 3 for entry in document):
        return "TensorBoard JSON", [
            dict(zip(("wall_time", "step", "value"), e, strict=True)) for e in document
        ]
    return kind, [flat(entry) for entry in document] if _are_records(document) else None


def _are_records(value: Any) -> bool:
    return isinstance(value, list) and bool(value) and all(isinstance(entry, dict) for entry in value)


def _is_list(value: Any) -> bool:
    return isinstance(value, list)


def _longest_list(document: Mapping[str, Any]) -> list[Record] | None:
    """The records of ``{"config": ..., "metrics": [{...}]}``."""
    return max((value for value in document.values() if _are_records(value)), key=len, default=None)


def _from_columns(document: Mapping[str, Any]) -> list[Record] | None:
    """``{"loss": [...]}`` of Keras, ``{"loss": {"0": ...}}`` of pandas, ``{"train": {"loss": [...]}}``."""
    sections = {k: v for k, v in document.items() if isinstance(v, dict) and any(map(_is_list, v.values()))}
    columns = {
        name: list(values.values()) if isinstance(values, dict) else values
        for name, values in {**document, **flat(sections)}.items()
        if name not in sections and isinstance(values, list | dict)
    }
    length = max(map(len, columns.values()), default=0)
    rows: list[Record] = [{k: v[at] for k, v in columns.items() if at < len(v)} for at in range(length)]
    return rows or None
