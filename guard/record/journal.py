"""Incidents, and the append-only journal they are written to: one JSON object a line."""

from __future__ import annotations

import json
import logging
import os
import time
from pathlib import Path
from typing import Any, BinaryIO

from guard.records import Incident

log = logging.getLogger("guard")


class Journal:
    """Appends records to a file and flushes each: a killed process loses none that was written.

    A disk that refuses to write does not end the training: the failure is counted in ``failures``.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        self.failures = 0

    def incident(self, incident: Incident) -> None:
        """Appends an incident."""
        self._append({"type": "incident", **incident.to_dict()})

    def outcome(self, incident_id: int, outcome: str, *, step: int, steps: int) -> None:
        """Appends how an incident ended: ``recovered``, ``recurred`` or ``halted``, after ``steps`` steps."""
        record = {"incident": incident_id, "outcome": outcome, "step": step, "steps": steps}
        self._append({"type": "outcome", **record, "time": time.time()})

    def _append(self, record: dict[str, Any]) -> None:
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            with self.path.open("a+b") as file:
                torn = _ends_torn(file)
                file.write(b"\n" * torn + json.dumps(record, allow_nan=False).encode() + b"\n")
        except OSError as error:
            self.failures += 1
            if self.failures == 1:
                log.warning("cannot write %s: %s; training goes on", self.path, error.strerror)


def _ends_torn(file: BinaryIO) -> bool:
    """Whether the last line was cut short by a kill or a full disk: the next record must not join it."""
    if file.seek(0, os.SEEK_END) == 0:
        return False
    file.seek(-1, os.SEEK_END)
    return file.read(1) != b"\n"
