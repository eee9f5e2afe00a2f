"""What is stored of a run: the records that the journal and metrics.jsonl hold, and every reader shows."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any


@dataclass(frozen=True, slots=True)
class Incident:
    """One event that the guard acted on, with its evidence.

    ``layers`` and ``ranks`` are worst first; so is ``moved``, how far the weights went: a damaged weight or
    moment shows there, not in the gradient. ``window`` holds the last attempts before it,
    ``samples`` the ids of the global batch, where the data cursor knows them. ``moved_first`` is the signal
    that left its baseline first, and on which attempt; ``faulty_ranks`` those whose result differed when the
    batch was computed again; ``excluded_ranks`` those without whose share it was applied, because their data
    stays bad; ``dropped_micro_batches`` counts those whose loss was not finite.
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
    excluded_ranks: list[int] = field(default_factory=list)
    dropped_micro_batches: int = 0
    window: list[dict[str, Any]] = field(default_factory=list)
    layers: list[dict[str, Any]] = field(default_factory=list)
    moved: list[dict[str, Any]] = field(default_factory=list)
    ranks: list[dict[str, Any]] = field(default_factory=list)
    samples: list[int] = field(default_factory=list)

    def to_dict(self) -> dict[str, Any]:
        """As it stands in the journal; non-finite numbers become the strings nan, inf and -inf."""
        record: dict[str, Any] = strict(asdict(self))
        return record


def strict(value: Any) -> Any:
    """A copy in which every float that strict JSON cannot hold is the string nan, inf or -inf."""
    if isinstance(value, float):
        return float(value) if math.isfinite(value) else str(float(value))
    if isinstance(value, Mapping):
        return {str(key): strict(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [strict(item) for item in value]
    return value
