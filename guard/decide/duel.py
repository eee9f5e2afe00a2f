"""Two rates from one start: whose first steps end lower, beyond chance?

With the same batches their losses differ far less than the batches among themselves, so that pairs of losses
show in a few steps what a comparison of two means would take many for.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import fmean, variance

COMPARED = 45
"""Losses at the end of the first steps, in pairs."""
_LAST = 8
"""Of these the mean, where the rate before is known to be too high."""
_LOWER = 0.98
"""A third of a rate that is known to be too high is better where it is below this share."""
_SURE = 2.0
"""A third of a rate that was not cut must lead by so many standard errors of the mean difference."""
NEARLY = 0.1
"""A loss below this share of the first one is nearly good enough."""
LEAD, _SHORTENING_LEAD, _NEARLY_LEAD = 0.05, 0.2, 0.35
"""By how much a third of a rate that was not cut must be lower; the second where steps shorten by themselves,
so that a low rate leads at first, the third where the loss is nearly good enough."""

_EQUAL = 1e-5
"""Relative: losses of one batch at the same weights differ at most by the order of their sums."""


def end_of(losses: Sequence[float]) -> float:
    """Where the first steps end; batches that are not finite are skipped, and do not count."""
    finite = [loss for loss in losses if math.isfinite(loss)]
    return fmean(finite[-_LAST:]) if len(finite) >= min(_LAST, len(losses)) > 0 else math.inf


def ends_lower(
    losses: Sequence[float],
    before: Sequence[float],
    *,
    cut: bool,
    lead: float = LEAD,
    paired: bool = True,
) -> bool:
    """Whether ``losses`` end lower than ``before``, those with three times the rate.

    Args:
        losses: of the last steps, at most 45, the newest last.
        before: likewise.
        cut: whether the rate before is known to be too high; else the difference must be beyond chance.
        lead: the share of the mean by which they must then be lower.
        paired: whether they are of the same batches: after a rollback they are not.
    """
    if cut:
        return end_of(losses) < _LOWER * end_of(before)
    pairs = zip(reversed(losses), reversed(before), strict=False)
    kept = [(new, old) for new, old in pairs if math.isfinite(old - new)]
    if len(kept) < _LAST:
        return False
    gains = [old - new for new, old in kept]
    several = (gains,) if paired else ([new for new, _ in kept], [old for _, old in kept])
    error = math.sqrt(math.fsum(variance(each) for each in several) / len(gains))
    return fmean(gains) > max(lead * fmean(old for _, old in kept), _SURE * error)


def lead_after(share: float, *, shortens: bool) -> float:
    """By how much a third must lead.

    Args:
        share: where the loss has ended, of the first one.
        shortens: whether steps become shorter without a schedule.
    """
    if share < NEARLY:
        return _NEARLY_LEAD
    return _SHORTENING_LEAD if shortens else LEAD


@dataclass(slots=True)
class FirstBatch:
    """The first loss after the oldest state, and the step of that state; -1 where it is unknown.

    A return leads to the same batches if it has the same loss.
    """

    step: int = -1
    loss: float = math.nan

    def note(self, step: int, loss: float, oldest: int | None) -> None:
        """The loss of an attempt after ``step``."""
        if step == oldest != self.step and math.isfinite(loss):
            self.step, self.loss = step, loss

    def other(self, step: int, loss: float) -> str:
        """After a return to ``step``: what differs about the first batch, in words; empty if nothing does.

        Loops differ that go on with the next batch (a loader's iterator does not follow its state), and those
        that carry what the guard does not know.
        """
        if step != self.step or math.isclose(loss, self.loss, rel_tol=_EQUAL):
            return ""
        differs = f"the first batch does not come again (its loss is {loss:.5g}, it was {self.loss:.5g})"
        return f"{differs}: to compare rates, pass as data= and state= all that the loop continues from"
