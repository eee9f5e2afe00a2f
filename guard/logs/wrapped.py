"""Printed lines inside of JSON: what containers and structured loggers write around them."""

from __future__ import annotations

from collections.abc import Iterator

from guard.logs.columns import find_loss
from guard.logs.json_lines import flat, object_in
from guard.logs.printed import PRINTED
from guard.logs.source import Source

_FIELDS = frozenset(("log", "message", "msg", "textpayload", "line"))
"""Docker's ``json-file``; journald, python-json-logger, Datadog; zap, logrus; Google Cloud; Loki."""


class Wrapped(Source):
    """The text in one field of each line of JSON; other lines as they are."""

    def __init__(self, source: Source, field: str) -> None:
        super().__init__(source.path)
        self._around, self._field = source, field

    def lines(self) -> Iterator[str]:
        for line in self._around.lines():
            text = _text(line, self._field)
            yield line if text is None else text.rstrip("\r\n") + "\n"


def unwrapped(source: Source) -> Source:
    """The lines inside of JSON, where at least half of the first lines have a name and a number there."""
    head = source.head
    record = object_in(head[0]) if head else None
    if record is None or find_loss(list(flat(record))) is not None:
        return source
    for field in flat(record):
        texts = [_text(line, field) or "" for line in head] if _is_message(field) else []
        if 2 * sum(bool(PRINTED.search(text)) for text in texts) >= len(head):
            return Wrapped(source, field)
    return source


def _is_message(field: str) -> bool:
    return field.rpartition("/")[2].lower() in _FIELDS


def _text(line: str, field: str) -> str | None:
    """The text of the field; None where the line has no such field."""
    found = flat(object_in(line) or {}).get(field)
    return found if isinstance(found, str) else None
