"""Exact sliding median and MAD in plain Python: about a microsecond a value, no dependencies."""

from __future__ import annotations

from bisect import bisect_left, insort
from collections import deque
from collections.abc import Iterable
from itertools import islice
from operator import sub
from typing import Any


class RobustWindow:
    """The last ``size`` values with their exact median and median absolute deviation (MAD).

    A copy of the window is kept sorted by bisection, so both are exact. For an even count the median is the
    upper one. Push finite, accepted values only: a robust statistic resists outliers, but a window that is
    mostly outliers describes them.
    """

    __slots__ = ("_recent", "_sorted", "size")

    def __init__(self, size: int, values: Iterable[float] = ()) -> None:
        if size < 1:
            raise ValueError(f"a window holds at least one value, not {size}: set size to 1 or more")
        self.size = size
        self._recent: deque[float] = deque(values, maxlen=size)
        self._sorted = sorted(self._recent)

    def __len__(self) -> int:
        return len(self._sorted)

    def push(self, value: float) -> list[float]:
        """Adds a value; when the window is full the oldest one leaves. Returns the sorted values, to read."""
        recent, ordered = self._recent, self._sorted
        if len(recent) == self.size:
            del ordered[bisect_left(ordered, recent[0])]
        recent.append(value)
        insort(ordered, value)
        return ordered

    @property
    def median(self) -> float:
        """The (upper) median. Raises IndexError on an empty window."""
        ordered = self._sorted
        return ordered[len(ordered) // 2]

    def highest(self, rank: int) -> float:
        """The value that only ``rank - 1`` others exceed; the highest of all while there are too few."""
        ordered = self._sorted
        return ordered[-rank] if len(ordered) >= rank else ordered[-1]

    def median_mad(self) -> tuple[float, float]:
        """Median and unscaled MAD: half the values are within the MAD of the median.

        Values within a distance of the median are neighbours in sorted order: bisect for the nearest half.
        """
        ordered = self._sorted
        count = len(ordered)
        middle = count // 2
        median, run = ordered[middle], middle + 1
        low, high = max(0, middle - run + 1), min(middle, count - run)
        while low < high:
            start = (low + high) // 2
            if median - ordered[start] > ordered[start + run] - median:
                low = start + 1
            else:
                high = start
        return median, max(median - ordered[low], ordered[low + run - 1] - median)

    def roughness(self) -> float:
        """The upper quartile of the distances between neighbours in time: noise, without the trend."""
        recent = self._recent
        distances = sorted(map(abs, map(sub, recent, islice(recent, 1, None))))
        return distances[3 * len(distances) // 4] if distances else 0.0

    @property
    def lowest(self) -> float:
        """The lowest value. Raises IndexError on an empty window."""
        return self._sorted[0]

    def values(self) -> list[float]:
        return list(self._recent)

    def clear(self) -> None:
        self._recent.clear()
        self._sorted.clear()

    def state_dict(self) -> dict[str, Any]:
        return {"values": self.values()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continues from ``state_dict``; of more than ``size`` values the last are kept."""
        self._recent = deque(state["values"], maxlen=self.size)
        self._sorted = sorted(self._recent)
