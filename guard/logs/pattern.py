"""Lines read by a regular expression of the user."""

from __future__ import annotations

import re

from guard.logs.columns import USUAL
from guard.logs.log import Lines, Log, TraceError
from guard.logs.source import Source


def read_pattern(source: Source, regex: str) -> Log:
    """Searches every line for ``regex``; its groups are named ``loss``, ``step``, ``grad_norm``.

    Raises:
        TraceError: it is no regular expression, or has no group for the loss or the gradient norm.
    """
    try:
        pattern = re.compile(regex)
    except re.error as error:
        raise TraceError(source.path, 0, f"--regex {regex!r}: {error}") from None
    names = [name for name in USUAL if name in pattern.groupindex]
    if not {"loss", "grad_norm"} & set(names):
        example = r"step (?P<step>\d+).*loss (?P<loss>\S+)"
        raise TraceError(source.path, 0, f"--regex {regex!r} has no group named loss: write {example!r}")

    def records() -> Lines:
        for line, text in enumerate(source.lines(), start=1):
            if found := pattern.search(text):
                yield line, found.groupdict()

    return Log("lines read by --regex", names, records, uniform=True)
