"""What became of every checkpoint: a row in ``checkpoints.jsonl`` when one is written, becomes good, or goes.

The folders tell only of those that are still there. Nothing is restored from this file: it is for people.
"""

from __future__ import annotations

import logging
import time
from pathlib import Path
from typing import Literal

from guard.rows import JsonlWriter

logger = logging.getLogger(__name__)

Event = Literal["written", "good", "retired", "suspect", "undone", "unconfirmed", "failed"]
"""Of those that go: ``retired``, newer good ones took its place; ``suspect``, an anomaly followed it;
``undone``, the run went back beyond it; ``unconfirmed``, a candidate when the run was started again.
``failed``: it was never written."""


class History:
    """Appends the rows. A disk that refuses costs rows, never the training."""

    def __init__(self, path: Path | None) -> None:
        self._path = path
        self._refused = False

    def note(self, event: Event, step: int, *, attempt: int | None = None, size: int | None = None) -> None:
        """Tells of one checkpoint; ``size`` in bytes."""
        if self._path is None:
            return
        row = {"time": time.time(), "event": event, "step": step, "attempt": attempt, "size": size}
        try:
            with JsonlWriter(self._path) as rows:
                rows.write({name: value for name, value in row.items() if value is not None})
        except OSError as error:
            if not self._refused:
                logger.warning("cannot write %s: %s; training goes on", self._path.name, error.strerror)
            self._refused = True
