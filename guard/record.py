"""Incidents, and the append-only journal they are written to: one JSON object a line."""

from __future__ import annotations

import json
import logging
import math
import os
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, BinaryIO

log = logging.getLogger("guard")


@dataclass(frozen=True, slots=True)
class Incident:
    """One event that the guard acted on, with its evidence.

    ``layers`` and ``ranks`` are worst first; so is ``moved``, how far the weights went of late: a weight or a
    moment that was damaged shows there, not in the gradient. ``window`` holds the last attempts before it,
    ``samples`` the ids of the global batch, where the data state tells them. ``moved_first`` is the signal
    that left its level first, and on which attempt; ``faulty_ranks`` those whose result differed when the
    batch was computed again, ``left_out`` those without whose share it was applied, because their data stays
    bad; ``rejected`` counts micro-batches that were left out.
    """

    id: int
    job: str
    time: float
    attempt: int
    step: int
    verdict: str
    signal: str
    value: float
    score: float
    baseline: float | None
    action: str
    reason: str
    rolled_back_to: int | None = None
    steps_lost: int = 0
    seconds: float = 0.0
    source: str | None = None
    would: str | None = None
    recovery: dict[str, Any] | None = None
    moved_first: dict[str, Any] | None = None
    faulty_ranks: list[int] = field(default_factory=list)
    left_out: list[int] = field(default_factory=list)
    rejected: int = 0
    window: list[dict[str, Any]] = field(default_factory=list)
    layers: list[dict[str, Any]] = field(default_factory=list)
    moved: list[dict[str, Any]] = field(default_factory=list)
    ranks: list[dict[str, Any]] = field(default_factory=list)
    samples: list[int] = field(default_factory=list)

    def to_dict(self) -> dict[str, Any]:
        """As it stands in the journal; non-finite numbers become the strings nan, inf and -inf."""
        record: dict[str, Any] = strict(asdict(self))
        return record


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


def strict(value: Any) -> Any:
    """A copy in which every float that strict JSON cannot hold is the string nan, inf or -inf."""
    if isinstance(value, float):
        return float(value) if math.isfinite(value) else str(float(value))
    if isinstance(value, Mapping):
        return {str(key): strict(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [strict(item) for item in value]
    return value
