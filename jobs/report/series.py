"""Long series made short without losing what matters: every spike stays."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np
from numpy.typing import NDArray

from guard.rows import as_float

Floats = NDArray[np.float64]
Flags = NDArray[np.bool_]


@dataclass(frozen=True, slots=True)
class Matrix:
    """Named rows over time: `values` is attempts x names; infinity where not finite."""

    attempts: Floats
    names: tuple[str, ...]
    values: Floats


def envelope(x: Floats, y: Floats, buckets: int) -> tuple[Floats, Floats]:
    """At most 4 points for each of `buckets` equal stretches of x: first, lowest, highest, last.

    y is finite and x ascends. A line through the result covers the same pixels as one through all
    points, as long as a bucket is no wider than a pixel or two.
    """
    if len(x) <= 4 * buckets:
        return x, y
    keep: list[int] = []
    for start, end in _stretches(x, buckets):
        part = y[start:end]
        keep += sorted({start, start + int(part.argmin()), start + int(part.argmax()), end - 1})
    return x[keep], y[keep]


def bucketed(x: Floats, y: Floats, buckets: int, of: Callable[[Floats], Any]) -> tuple[Floats, Floats]:
    """The middle of each of `buckets` equal stretches of x, and the median or the mean of y there."""
    parts = _stretches(x, buckets)
    return np.array([x[a:b].mean() for a, b in parts]), np.array([float(of(y[a:b])) for a, b in parts])


def bucket_max(x: Floats, rows: Floats, columns: int, span: tuple[float, float]) -> Floats:
    """Rows that came at x (time x names), as names x columns: the largest of each stretch of `span`.

    Unknown cells (no row in the stretch, or all NaN) are NaN; infinity is the largest of all, so that a
    non-finite entry, passed as infinity, is never hidden.
    """
    table = np.full((columns, rows.shape[1]), -math.inf)
    low, high = span
    place = ((x - low) / max(high - low, 1e-9) * columns).astype(np.int64).clip(0, columns - 1)
    np.maximum.at(table, place, np.where(np.isnan(rows), -math.inf, rows))
    return np.where(np.isneginf(table), math.nan, table).T


def column_count(x: Floats, span: tuple[float, float], most: int) -> int:
    """How many equal stretches of `span` can be filled by rows at x, at most `most`."""
    if len(x) < 2:
        return 1
    spacing = float(np.median(np.diff(x)))
    return int(np.clip((span[1] - span[0]) / max(spacing, 1e-9), 1, most))


def cell(value: Any) -> float:
    """A matrix entry from a file: NaN for what is missing, infinity for what is not finite."""
    known = as_float(value)
    if known is None:
        return math.nan
    return known if -math.inf < known < math.inf else math.inf


def matrix(rows: Sequence[Sequence[float]], width: int) -> Floats:
    """Rows of unequal length as one table, filled up with NaN."""
    table = np.full((len(rows), width), math.nan)
    for index, row in enumerate(rows):
        table[index, : len(row)] = row
    return table


def _stretches(x: Floats, buckets: int) -> list[tuple[int, int]]:
    edges: Any = np.linspace(x[0], x[-1], buckets + 1)[1:-1]
    cuts = [0, *np.searchsorted(x, edges).tolist(), len(x)]
    return [(start, end) for start, end in pairwise(cuts) if end > start]
