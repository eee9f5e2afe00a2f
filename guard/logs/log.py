"""What a reader returns."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

Record = Mapping[str, Any]
Lines = Iterator[tuple[int, Record]]
"""The number of a line (0: unknown), and the names and values in it."""


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


@dataclass(frozen=True)
class Log:
    """A log that was recognized."""

    kind: str
    """How a person calls it: ``nanoGPT log``."""
    names: list[str]
    """The columns, in order."""
    records: Callable[[], Lines]
    """Reads it from the start."""
    columns: Mapping[str, str] = field(default_factory=dict)
    """The columns that this kind calls by a name of its own: ``{"loss": "Value"}``."""
    uniform: bool = False
    """Every record has every name."""


def names_of(records: Iterable[tuple[int, Record]]) -> list[str]:
    """All names, in the order in which they come."""
    found: dict[str, None] = {}
    for _, record in records:
        found.update(dict.fromkeys(record))
    return list(found)
