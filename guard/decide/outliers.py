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
_SPAN = 512
"""... in so many attempts are the data's way: to skip them for good would leave them untrained."""
_SWING = 16
"""Attempts in which a norm that is high again swings: a batch alone would not come back so soon."""
_LARGE = 2.0
"""From twice its threshold on a norm is none that clipping makes harmless."""
_OVERWHELMING = 3.0
"""From three times the threshold on no batch explains a loss (see ``guard.decide.detector``), unless the run
began with such a loss."""


class Outliers:
    """Remembers the last anomalous attempts. Its state survives a rollback.

    Args:
        sigmas: the score of a value at its threshold.
        replays: whether a rollback replays the data, so that it loses no batch, and a skip does.
    """

    def __init__(self, sigmas: float, *, replays: bool = False) -> None:
        self._sigmas, self._replays = sigmas, replays
        self._losses: deque[int] = deque(maxlen=_MOST)
        """The last attempts whose loss was anomalous."""
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
        moved_far: Callable[[], bool],
        unknown: bool = False,
        skipped: bool = False,
    ) -> Decision | None:
        """What is right instead of a rollback or a skip; None where it may be the weights. Call on each
        verdict that is not ``ok``.

        Args:
            verdict: the detector's.
            attempt: its number.
            usual: whether the loss is one that the run began with.
            moved_far: whether the weights have moved farther than steps explain; measures them.
            skipped: whether outliers are: the same batch then has the same loss again.
            unknown: whether the run has no level yet: high losses between normal ones then belong to it.
        """
        ratio = verdict.score / self._sigmas
        if verdict.signal == "grad_norm" and verdict.kind == "suspect":
            last, self._norm = self._norm, attempt
            if ratio < _LARGE and attempt - last < _SWING:
                return Decision("clip", "grad_norm is suspect again, while the loss is not")
        if self._replays or verdict.signal != "loss" or verdict.kind not in ("suspect", "spike"):
            return None
        last, score, times = self._batch
        falls = verdict.score == score or (times > _MOST and verdict.score < score)
        times = times + 1 if last == attempt - 1 and falls else 1
        self._batch = attempt, verdict.score, times
        if skipped and times > _MOST and not moved_far():
            return Decision("clip", f"loss {verdict.kind}: one batch, which comes {times} times in a row")
        recent = sum(attempt - other < _WITHIN for other in self._losses)
        swings = unknown and attempt - 1 not in self._losses
        often = len(self._begins) == _OFTEN and attempt - self._begins[0] < _SPAN
        if attempt - 1 not in self._losses:
            self._begins.append(attempt)
        self._losses.append(attempt)
        ordinary = ratio < _OVERWHELMING or usual or unknown
        if ordinary and often and not moved_far():
            return Decision("clip", f"loss {verdict.kind}: one of many, the weights have not moved far")
        if ordinary and recent < _MOST and not moved_far():
            return Decision("skip", f"loss {verdict.kind}: an outlier, the weights have not moved far")
        if swings and not moved_far():
            return Decision("apply", "the loss swings from the first steps on", new_level=True)
        return None

    def state_dict(self) -> dict[str, Any]:
        return {
            "losses": list(self._losses),
            "norm": self._norm,
            "batch": list(self._batch),
            "begins": list(self._begins),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self._losses = deque(map(int, state["losses"]), maxlen=_MOST)
        self._begins = deque(map(int, state.get("begins", ())), maxlen=_OFTEN)
        self._norm = int(state["norm"])
        last, score, times = state.get("batch", (-1, math.nan, 0))
        self._batch = int(last), float(score), int(times)
