"""Printed blocks: a line with the step, and indented lines of names and numbers below it."""

from __future__ import annotations

import re

from guard.logs.figures import NUMBER
from guard.logs.log import Lines, Log, names_of
from guard.logs.printed import COLOUR
from guard.logs.source import Source

_START = re.compile(
    r"\[(?:step|batch)=(\d+)[^\]]*\]|^(?:- )?(?i:global_step|step|iteration|iter)\W{1,3}(\d+)(?:/\d+)?\W*$"
)
_ENTRY = re.compile(rf"^\s+(?:Train )?([A-Za-z][\w/ ().-]*?)\s*[=:]\s*({NUMBER})\s*$")

_KINDS = {"[batch=": "Composer log", "[step=": "OLMo log"}


def read_blocks(source: Source, _: str | None = None) -> Log | None:
    """OLMo's and Composer's console: ``[step=10/1000]`` above ``train/CrossEntropyLoss=11.05``. YAML has
    ``- step: 10``.
    """
    starts = [at for at, line in enumerate(source.head) if _START.search(line)]
    if not any(_ENTRY.match(line) for at in starts for line in source.head[at + 1 : at + 2]):
        return None
    first = source.head[starts[0]]
    kind = next((kind for mark, kind in _KINDS.items() if mark in first), "printed blocks")
    return Log(kind, names_of(_records(source)), lambda: _records(source))


def _records(source: Source) -> Lines:
    first, record = 0, dict[str, str]()
    for line, text in enumerate(source.lines(), start=1):
        text = COLOUR.sub("", text)
        if start := _START.search(text):
            if record:
                yield first, record
            first, record = line, {"step": start[1] or start[2]}
        elif record and (entry := _ENTRY.match(text)):
            record[entry[1]] = entry[2]
    if record:
        yield first, record
