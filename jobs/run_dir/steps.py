"""The step attempts of a run as columns: the history that stands, thinned, with what was rolled back."""

from __future__ import annotations

import math
from array import array
from bisect import bisect_left
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from guard.records import COLUMNS
from guard.rows import Row, as_float, as_int, stored, strict

Span = tuple[float, float]


@dataclass(frozen=True, slots=True)
class Evaluation(Row):
    """One evaluation; `metrics` as the workload names them."""

    attempt: int
    step: int | None
    metrics: dict[str, float] = stored(dict, key="eval")


class StepTable:
    """Collects rows of metrics.jsonl.

    Where a job was restarted from a checkpoint, attempts come again: the later history stands.

    Args:
        columns: those to collect. A number that is missing or has another type is None; columns that are not
            flat are collected as they are stored.
    """

    def __init__(self, columns: Iterable[str] = COLUMNS) -> None:
        self.columns: dict[str, list[Any]] = {name: [] for name in ("attempt", "step", *columns)}
        self.ordinary: list[bool] = []
        self.evaluations: list[Evaluation] = []
        self.restarts = 0

    def __len__(self) -> int:
        return len(self.ordinary)

    def extend(self, rows: Iterable[Mapping[str, Any]]) -> StepTable:
        """Adds rows of steps and of evaluations, ignores others; returns the table."""
        for row in rows:
            attempt = as_int(row.get("attempt"))
            if attempt is None:
                continue
            if isinstance(row.get("eval"), Mapping):
                self.evaluations.append(Evaluation.from_row(row))
            elif "action" in row:
                self._add_step(row, attempt)
        return self

    def thinned(self, points: int) -> dict[str, list[Any]]:
        """About `points` rows as strict JSON: every n-th, the last, and every one that was not ordinary."""
        last, stride = len(self) - 1, max(1, -(-len(self) // max(points, 1)))
        kept = [i for i, plain in enumerate(self.ordinary) if not plain or i % stride == 0 or i == last]
        return {name: strict([column[i] for i in kept]) for name, column in self.columns.items()}

    def _add_step(self, row: Mapping[str, Any], attempt: int) -> None:
        attempts = self.columns["attempt"]
        if attempts and attempt <= attempts[-1]:
            self._cut(attempt)
        for name, column in self.columns.items():
            value = row.get(name)
            column.append(_number(value) if name in COLUMNS and COLUMNS[name].kind == "number" else value)
        attempts[-1] = attempt
        self.ordinary.append(row["action"] in ("applied", "clipped") and row.get("verdict") == "ok")

    def _cut(self, attempt: int) -> None:
        self.restarts += 1
        place = bisect_left(self.columns["attempt"], attempt)
        for column in (*self.columns.values(), self.ordinary):
            del column[place:]
        self.evaluations = [item for item in self.evaluations if item.attempt < attempt]


@dataclass(slots=True)
class RolledBack:
    """The attempts that each rollback discarded, as (first, last): those whose step was beyond its target."""

    spans: list[Span] = field(default_factory=list)
    _attempts: array[float] = field(default_factory=lambda: array("d"))
    _steps: array[float] = field(default_factory=lambda: array("d"))

    def add(self, columns: Mapping[str, Iterable[Any]]) -> None:
        """Adds attempts: columns `attempt`, `step` and `rolled_back_to`, None or NaN where unknown."""
        names = ("attempt", "step", "rolled_back_to")
        for attempt, step, target in zip(*(columns[name] for name in names), strict=True):
            if target is not None and not math.isnan(target):
                first = attempt
                while self._steps and not self._steps[-1] <= target:
                    self._steps.pop()
                    first = self._attempts.pop()
                self.spans.append((first, attempt))
            self._attempts.append(attempt)
            self._steps.append(math.nan if step is None else step)


def _number(value: Any) -> Any:
    if type(value) is float or (type(value) is int and abs(value) < 2**53):
        return value
    return as_float(value)
