"""Totals that only grow: histograms, and what is made of the totals of two snapshots.

Totals are a nested mapping of numbers, as in the snapshots of `GuardMetrics`.
"""

from __future__ import annotations

import math
from bisect import bisect_left
from collections.abc import Callable, Mapping, Sequence
from itertools import accumulate, pairwise
from typing import Any

from prometheus_client.utils import floatToGoString


class Histogram:
    """Counts per bucket; the last bucket takes what lies above all bounds."""

    def __init__(self, bounds: Sequence[float]) -> None:
        self._bounds = bounds
        self._edges = [floatToGoString(bound) for bound in (*bounds, math.inf)]
        self._counts = [0] * len(self._edges)
        self._sum = 0.0

    def observe(self, value: float) -> None:
        """Count one value."""
        self._counts[bisect_left(self._bounds, value)] += 1
        self._sum += value

    def dump(self) -> dict[str, Any]:
        """Cumulative counts by upper bound, and the sum of the values."""
        return {"buckets": dict(zip(self._edges, accumulate(self._counts), strict=True)), "sum": self._sum}

    def load(self, state: Mapping[str, Any]) -> None:
        """Continue from `dump`."""
        cumulative = list(accumulate((state["buckets"][edge] for edge in self._edges), max))
        self._counts = [after - before for before, after in pairwise([0, *cumulative])]
        self._sum = float(state["sum"])


def carry_totals(previous: Mapping[str, Any] | None, latest: Mapping[str, Any]) -> dict[str, Any]:
    """`latest`, with no total below `previous` when both are snapshots of the same run (same `created`).

    A smaller total would be a counter reset to Prometheus, which would count everything before it twice.
    """
    if previous is None or previous["created"] != latest["created"]:
        return dict(latest)
    return {**latest, "totals": larger(previous["totals"], latest["totals"])}


def larger(old: Any, new: Any) -> Any:
    """The larger of two totals, leaf by leaf; what only one of them has is taken from it."""
    return _merged(old, new, max)


def shortfall(old: Any, new: Any) -> Any:
    """By how much each total of `new` is below that of `old`; 0 where it is not."""
    return _merged(old, new, lambda before, after: max(before - after, 0))


def added(totals: Any, more: Any) -> Any:
    """The sum of two totals, leaf by leaf."""
    return _merged(totals, more, lambda one, other: one + other)


def _merged(old: Any, new: Any, join: Callable[[Any, Any], Any]) -> Any:
    """Both, leaf by leaf; a leaf or a branch that one of them lacks is 0 there."""
    if isinstance(old, Mapping) or isinstance(new, Mapping):
        old, new = old or {}, new or {}
        return {key: _merged(old.get(key, 0), new.get(key, 0), join) for key in {**old, **new}}
    return join(old, new)
