"""What each rank knows of its bad samples, as a row of numbers, and the ranking that follows from them."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import NamedTuple

import numpy as np

from guard.observe import culprits
from guard.records import SampleEvidence, Verdict
from guard.types import Floats

UNKNOWN = math.nan
_RELEVANT_AT_MOST = 0.9
"""In a small batch, a sample explains the verdict from twice an even share on, but at most from this one."""
_DIGIT = 1 << 22
"""An id is sent in digits of this base, each exact in float32."""
_HEAD = 2
_COLUMNS = 6
_WIDTH = _HEAD + culprits.MOST * _COLUMNS


class FoundSample(NamedTuple):
    """A bad sample of this rank.

    Attributes:
        sample: its id.
        loss, norm: of it alone; NaN where that is unknown.
        fall: by how much the measure falls without it; NaN where the measure is not finite.
    """

    sample: int
    loss: float
    norm: float
    fall: float


def sample_row(samples: int, healthy: bool, found: Iterable[FoundSample]) -> list[float]:
    """A rank's row.

    Args:
        samples: how many it has; 0 where it could not search.
        healthy: whether some of them gave a finite measure.
        found: at most ``culprits.MOST``.
    """
    row = [float(samples), float(healthy)]
    for one in found:
        row += [*_digits(one.sample), one.loss, one.norm, one.fall]
    return row + [UNKNOWN] * (_WIDTH - len(row))


def has_found(row: Floats) -> bool:
    """Whether a rank's row has a bad sample."""
    return not math.isnan(row[_HEAD])


class _Entry(NamedTuple):
    """A sample in a row."""

    high: float
    middle: float
    low: float
    loss: float
    norm: float
    fall: float

    @property
    def sample(self) -> int:
        return (int(self.high) * _DIGIT + int(self.middle)) * _DIGIT + int(self.low)

    def evidence(self, rank: int, share: float | None) -> SampleEvidence:
        norm = None if math.isnan(self.norm) else self.norm
        bounded = None if share is None else min(1.0, share)
        return SampleEvidence(self.sample, rank, self.loss, norm, share is None, bounded)


def _digits(sample: int) -> tuple[int, int, int]:
    rest, low = divmod(sample, _DIGIT)
    high, middle = divmod(rest, _DIGIT)
    return high, middle, low


def baseline(verdict: Verdict) -> float:
    """What the measure usually is."""
    return verdict.baseline or 0.0


def excess(wholes: Floats, verdict: Verdict) -> float:
    """Over the baseline, of all ranks that could be measured."""
    return float((wholes[np.isfinite(wholes)] - baseline(verdict)).sum())


def ranked(rows: Floats, wholes: Floats, verdict: Verdict) -> list[SampleEvidence]:
    """The samples of all ranks that explain the verdict, the worst first, at most ``culprits.MOST``.

    Args:
        rows: of ``sample_row``, [ranks, columns].
        wholes: the measure of all samples of each rank.
    """
    entries = [
        (_Entry(*entry), rank)
        for rank, row in enumerate(rows)
        for entry in row[_HEAD:].reshape(-1, _COLUMNS).tolist()
        if not math.isnan(entry[0])
    ]
    if bad := [(entry, rank) for entry, rank in entries if math.isnan(entry.fall)]:
        healthy = np.nansum(rows[:, 1]) > 0  # else it is not the samples, but the weights
        return [entry.evidence(rank, None) for entry, rank in bad[: culprits.MOST] if healthy]
    above = excess(wholes, verdict)
    relevant = max(culprits.RELEVANT, min(_RELEVANT_AT_MOST, 2 / max(1.0, np.nansum(rows[:, 0]))))
    shares = [(entry.fall / above, entry, rank) for entry, rank in entries]
    worst = sorted((item for item in shares if item[0] >= relevant), key=lambda item: -item[0])
    return [entry.evidence(rank, share) for share, entry, rank in worst[: culprits.MOST]]
