"""Which checkpoints are deleted: not the newest few good ones, not the best, never the last good one."""

from __future__ import annotations

import math
from collections.abc import Sequence

from jobs.checkpoints.manifest import Manifest


def retired(manifests: Sequence[Manifest], *, keep: int, best: str | None) -> list[int]:
    """The steps whose checkpoints may be deleted.

    Args:
        manifests: of all checkpoints of the job, in any order. Candidates are never retired.
        keep: how many of the newest good ones stay; at least one does.
        best: ``max:NAME`` or ``min:NAME``; the good one with the best value of that metric also stays.
    """
    good = sorted((m for m in manifests if m.health == "good"), key=lambda m: m.step)
    stay = {m.step for m in good[-max(1, keep) :]}
    if best is not None and (winner := _best(good, best)) is not None:
        stay.add(winner.step)
    return [m.step for m in good if m.step not in stay]


def _best(good: Sequence[Manifest], criterion: str) -> Manifest | None:
    """The best by a metric, the newest of equals; None where no checkpoint has a finite value of it."""
    direction, _, name = criterion.partition(":")
    sign = -1.0 if direction == "min" else 1.0
    measured = [m for m in good if math.isfinite(m.metrics.get(name, math.nan))]
    return max(measured, key=lambda m: (sign * m.metrics[name], m.step), default=None)
