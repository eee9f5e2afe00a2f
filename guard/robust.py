"""Exact median and MAD of the last values of a stream, in about a microsecond a value, in plain Python."""

from bisect import bisect_left, insort
from collections import deque
from collections.abc import Iterable
from typing import Any


class RobustWindow:
    """The last `size` values with their exact median and median absolute deviation (MAD).

    A sorted copy of the window is kept by bisection, so both statistics are exact and order-independent.
    For an even count the upper median is used. Push finite, accepted values only: a robust statistic
    resists outliers, but a window that is mostly outliers describes them.
    """

    __slots__ = ("_recent", "_sorted", "size")

    def __init__(self, size: int, values: Iterable[float] = ()) -> None:
        if size < 1:
            raise ValueError(f"a window holds at least one value, not {size}")
        self.size = size
        self._recent: deque[float] = deque(values, maxlen=size)
        self._sorted = sorted(self._recent)

    def __len__(self) -> int:
        return len(self._sorted)

    def push(self, value: float) -> None:
        """Add a value; when the window is full the oldest one leaves."""
        recent, ordered = self._recent, self._sorted
        if len(recent) == self.size:
            del ordered[bisect_left(ordered, recent[0])]
        recent.append(value)
        insort(ordered, value)

    @property
    def median(self) -> float:
        """The (upper) median of the window."""
        return self._sorted[len(self._sorted) // 2]

    def median_mad(self) -> tuple[float, float]:
        """Median and MAD (not scaled). The MAD is a binary search for the tightest half around the median."""
        ordered = self._sorted
        count = len(ordered)
        middle = count // 2
        median = ordered[middle]
        span = middle + 1
        low, high = max(0, middle - span + 1), min(middle, count - span)
        while low < high:
            start = (low + high) // 2
            if median - ordered[start] > ordered[start + span] - median:
                low = start + 1
            else:
                high = start
        return median, max(median - ordered[low], ordered[low + span - 1] - median)

    def clear(self) -> None:
        """Forget everything."""
        self._recent.clear()
        self._sorted.clear()

    def state_dict(self) -> dict[str, Any]:
        """Values in order of arrival (JSON-able)."""
        return {"values": list(self._recent)}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue exactly where the saved window stood."""
        self._recent = deque(state["values"], maxlen=self.size)
        self._sorted = sorted(self._recent)
