"""What became of every checkpoint: a row in ``checkpoints.jsonl`` when one is written, becomes good, or goes.

The folders show only those that still exist. Nothing is restored from this file: it is for the report, and to
notice that checkpoints are gone.
"""

from __future__ import annotations

import logging
import time
from pathlib import Path
from typing import Literal

from guard.rows import JsonlWriter
from jobs.run_dir.jsonl import iter_jsonl

logger = logging.getLogger(__name__)

Event = Literal["written", "good", "retired", "suspect", "rolled_back", "unconfirmed", "failed"]
"""Of those that go: ``retired``, newer good ones replaced it; ``suspect``, an anomaly followed it;
``rolled_back``, the run was rolled back to an earlier step; ``unconfirmed``, a candidate when the run was
started again. ``failed``: it was never written."""
_GONE = ("retired", "suspect", "rolled_back", "undone", "unconfirmed")  # undone: its name in older jobs


def last_good(path: Path) -> int | None:
    """The newest step whose checkpoint was good and was not removed by us; None where there is none."""
    good: set[int] = set()
    try:
        for row in iter_jsonl(path):
            if row.get("event") == "good":
                good.add(row["step"])
            elif row.get("event") in _GONE:
                good.discard(row["step"])
    except (OSError, KeyError, TypeError):
        return None
    return max(good, default=None)


class History:
    """Appends the rows. A failed write costs rows, never the training."""

    def __init__(self, path: Path | None) -> None:
        self._path = path
        self._failed = False

    def add(self, event: Event, step: int, *, attempt: int | None = None, size: int | None = None) -> None:
        """Appends a row of one checkpoint; ``size`` in bytes."""
        if self._path is None:
            return
        row = {"time": time.time(), "event": event, "step": step, "attempt": attempt, "size": size}
        try:
            with JsonlWriter(self._path) as rows:
                rows.write({name: value for name, value in row.items() if value is not None})
        except OSError as error:
            if not self._failed:
                logger.warning("cannot write %s: %s; training continues", self._path.name, error.strerror)
            self._failed = True
