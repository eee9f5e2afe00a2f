"""Steps that start again with each epoch."""

from __future__ import annotations

from guard.logs.figures import number
from guard.logs.log import Record


class Epochs:
    """Counts steps on, where they go back while the epoch grows: a loop that numbers the batches of each
    epoch from the start. A run that was resumed goes back with its epoch.
    """

    def __init__(self, column: str | None) -> None:
        self._column = column
        self._epoch = self._last = self._stride = self._before = 0.0

    def counted_on(self, step: float, record: Record) -> float:
        """The step since the start of the log."""
        try:
            epoch = number(record.get(self._column)) if self._column else self._epoch
        except (TypeError, ValueError, OverflowError):
            return step + self._before
        if step <= self._last and epoch > self._epoch:
            self._before += self._last + (0 if step else self._stride)
        elif step > self._last:
            self._stride = step - self._last
        self._epoch, self._last = epoch, step
        return step + self._before
