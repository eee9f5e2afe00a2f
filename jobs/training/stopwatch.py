"""Adds up the time of some part of a step."""

from __future__ import annotations

import time


class Stopwatch:
    """Adds up the seconds spent in its ``with`` blocks, until they are taken."""

    def __init__(self) -> None:
        self._began = self._seconds = 0.0

    def __enter__(self) -> None:
        self._began = time.perf_counter()

    def __exit__(self, *_: object) -> None:
        self._seconds += time.perf_counter() - self._began

    def take(self) -> float:
        """The seconds since the last call."""
        seconds, self._seconds = self._seconds, 0.0
        return seconds
