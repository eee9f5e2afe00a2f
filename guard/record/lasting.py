"""A condition that lasts is one incident, from the attempt on which it begins to the one on which it ends."""

from __future__ import annotations

from typing import Any, NamedTuple

from guard.types import Evidence, Rung

_SEVERITY: dict[Rung, int] = {"apply": 0, "clip": 1, "skip": 2, "rollback": 3, "halt": 4}


class Ended(NamedTuple):
    """A condition that is over: its incidents, and on how many attempts it was seen."""

    incidents: list[int]
    attempts: int


class LastingCondition:
    """Which anomalous attempts only continue what an incident has reported already.

    A rollback, a halt and a hardware fault are always incidents of their own, and so is a skip, whose batch
    has its own samples, until ``own_skips`` have followed each other. Where the guard only watches, an
    attempt on which it would have done more begins another one.
    """

    def __init__(self, *, shadow: bool, own_skips: int) -> None:
        self._shadow = shadow
        self._own_skips = own_skips
        self._kind: list[Any] = []
        self._attempts = 0
        self._severity = 0
        self._incidents: list[int] = []

    def begins(self, evidence: Evidence, action: str) -> bool:
        """Counts an anomalous attempt; whether it is an incident of its own."""
        kind, severity = self._kind_of(evidence, action), _SEVERITY[evidence.decision.rung]
        if kind != self._kind:
            self._kind, self._attempts, self._severity, self._incidents = kind, 0, -1, []
        self._attempts += 1
        worse, self._severity = severity > self._severity, max(severity, self._severity)
        acted = action == "rolled_back" or (action == "skipped" and self._attempts <= self._own_skips)
        return worse or acted or bool(evidence.faulty_ranks)

    def reported(self, incident: int) -> None:
        """The incident of the attempt that was counted last."""
        self._incidents.append(incident)

    def ended(self, evidence: Evidence, action: str) -> Ended | None:
        """What this attempt ends: a condition that lasted for several attempts, and is not there any more."""
        if not self._kind or (evidence.anomaly is not None and self._kind_of(evidence, action) == self._kind):
            return None
        found = Ended(self._incidents, self._attempts)
        self._kind, self._incidents = [], []
        return found if found.attempts > 1 else None

    def _kind_of(self, evidence: Evidence, action: str) -> list[Any]:
        verdict = evidence.anomaly
        if self._shadow or verdict is None:
            return ["shadow"]
        if evidence.excluded_ranks:
            return ["excluded", *evidence.excluded_ranks]
        if evidence.excluded_samples:
            return ["excluded samples", *evidence.excluded_samples]
        applied = action in ("applied", "clipped")
        return [verdict.kind, verdict.signal, "applied" if applied else action]

    def state_dict(self) -> dict[str, Any]:
        return {
            "kind": list(self._kind),
            "attempts": self._attempts,
            "severity": self._severity,
            "incidents": list(self._incidents),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self._kind, self._attempts = list(state["kind"]), int(state["attempts"])
        self._severity, self._incidents = int(state["severity"]), list(state["incidents"])
