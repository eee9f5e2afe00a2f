"""An outlier on healthy weights is the batch's: it is skipped, or clipped, and nothing is rolled back."""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable
from typing import Any

from guard.records import Verdict
from guard.types import Decision

_MOST = 2
"""Two bad batches in a row happen where bad batches do ..."""
_WITHIN = 8
"""... a third among eight is no chance: what makes them is still there."""
_OFTEN = 8
"""Bad batches, in a row or not, that come for the ninth time ..."""
_OFTEN_MILD = 4
"""... those with a mild loss for the fifth time: clipped, they do no harm, and a rare class is learned ..."""
_SPAN = 512
"""... in so many attempts are the data's way: to skip them for good would leave them untrained."""
_SWING = 16
"""Attempts in which a norm that is high again swings: a batch alone would not come back so soon."""
_LARGE = 2.0
"""From twice its threshold on a norm is none that clipping makes harmless."""
_OVERWHELMING = 3.0
"""From three times the threshold on (see ``guard.decide.detector``) one batch alone explains a loss, never
two, unless the run began with such a loss."""


class Outliers:
    """Remembers the last anomalous attempts. Its state survives a rollback.

    Args:
        sigmas: the score of a value at its threshold.
        replays: whether a rollback replays the data, so that it loses no batch, and a skip does.
    """

    def __init__(self, sigmas: float, *, replays: bool = False) -> None:
        self._sigmas, self._replays = sigmas, replays
        self._last: deque[int] = deque(maxlen=_MOST)
        """The last attempts whose loss or norm was anomalous."""
        self._begins: deque[int] = deque(maxlen=_OFTEN)
        """Those that began a series of them."""
        self._batch: tuple[int, float, int] = (-1, math.nan, 0)
        """The last of these attempts, its score, and for how many in a row it was that or, applied, fell."""
        self._norm = -_SWING
        """The last attempt whose gradient norm alone was anomalous."""

    def instead(
        self,
        verdict: Verdict,
        attempt: int,
        *,
        usual: bool,
        mild: bool = False,
        moved_far: Callable[[], bool],
        unknown: bool = False,
        skipped: bool = False,
    ) -> Decision | None:
        """What is right instead of a rollback or a skip; None where it may be the weights.

        Call it on each verdict that is not ``ok``. Skipping first is safe where the weights are the cause
        after all: they stay as they are, so the next batch shows it again, and that is a rollback.

        Args:
            verdict: the detector's.
            attempt: its number.
            usual: whether the loss is one that the run began with.
            mild: whether it is less than twice that. Such a loss between normal ones is that of a rare class
                or of a hard batch, and likewise a norm: weights that are the cause make three in a row.
            moved_far: whether the weights have moved farther than steps explain; measures them.
            skipped: whether outliers are: the same batch then has the same loss again.
            unknown: whether the run has no level yet: high losses between normal ones then belong to it.
        """
        if verdict.signal not in ("loss", "grad_norm") or verdict.kind not in ("suspect", "spike"):
            return None
        ratio, on_loss = verdict.score / self._sigmas, verdict.signal == "loss"
        if not on_loss and verdict.kind == "suspect":
            last, self._norm = self._norm, attempt
            if ratio < _LARGE:
                swings = attempt - last < _SWING
                reason = "grad_norm is suspect again, while the loss is not"
                return Decision("clip", reason) if swings else None
        if self._replays:
            return None
        last, score, times = self._batch
        falls = verdict.score == score or (times > _MOST and verdict.score < score)
        times = times + 1 if last == attempt - 1 and falls else 1
        self._batch = attempt, verdict.score, times
        what = f"{verdict.signal} {verdict.kind}"
        if skipped and times > _MOST and not moved_far():
            return Decision("clip", f"{what}: one batch, which comes {times} times in a row")
        recent = sum(attempt - other < _WITHIN for other in self._last)
        follows = attempt - 1 in self._last
        in_a_row = follows and attempt - 2 in self._last
        series = sum(attempt - begin < _SPAN for begin in self._begins)
        if not follows:
            self._begins.append(attempt)
        self._last.append(attempt)
        ordinary = not on_loss or ratio < _OVERWHELMING or usual or unknown
        # While levels are relearned, a skipped value would be one of those that were seen since.
        few = recent < (_MOST if ordinary else verdict.baseline is not None)
        mild = (mild or not on_loss) and ratio < _OVERWHELMING and not in_a_row
        few = few or mild
        often = series == _OFTEN or (mild and series >= _OFTEN_MILD)
        if often and (few or ordinary) and not moved_far():
            return Decision("clip", f"{what}: one of many, the weights have not moved far")
        if few and not moved_far():
            return Decision("skip", f"{what}: an outlier, the weights have not moved far")
        if on_loss and unknown and not follows and not moved_far():
            return Decision("apply", "the loss swings from the first steps on", new_level=True)
        return None

    def state_dict(self) -> dict[str, Any]:
        return {
            "losses": list(self._last),
            "norm": self._norm,
            "batch": list(self._batch),
            "begins": list(self._begins),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self._last = deque(map(int, state["losses"]), maxlen=_MOST)
        self._begins = deque(map(int, state.get("begins", ())), maxlen=_OFTEN)
        self._norm = int(state["norm"])
        last, score, times = state.get("batch", (-1, math.nan, 0))
        self._batch = int(last), float(score), int(times)
