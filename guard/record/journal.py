"""The append-only journal of incidents: one JSON object a line."""

from __future__ import annotations

import logging
import time
from pathlib import Path
from typing import Any

from guard.records import Incident
from guard.rows import JsonlWriter

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
        self._append({"type": "incident", **incident.to_row()})

    def outcome(self, incident_id: int, outcome: str, *, step: int, steps: int, job: str = "") -> None:
        """Appends how an incident ended, after ``steps`` attempts: see ``IncidentOutcome``.

        Args:
            job: that of the incident, where guards share a journal.
        """
        record = {"incident": incident_id, "job": job, "outcome": outcome, "step": step, "steps": steps}
        self._append({"type": "outcome", **record, "time": time.time()})

    def change(self, reason: str, *, step: int, attempt: int, steps: int) -> None:
        """Appends a change on purpose that was announced, for ``steps`` attempts."""
        record = {"reason": reason, "step": step, "attempt": attempt, "steps": steps}
        self._append({"type": "change", **record, "time": time.time()})

    def _append(self, record: dict[str, Any]) -> None:
        try:
            with JsonlWriter(self.path) as rows:
                rows.write(record)
        except OSError as error:
            self.failures += 1
            if self.failures == 1:
                log.warning("cannot write %s: %s; training continues", self.path, error.strerror)
