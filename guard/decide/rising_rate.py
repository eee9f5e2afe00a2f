"""A warning before the explosion: the rate rises beyond all that brought the loss down, and the loss climbs.

A rate that is too high seldom explodes at once. In a long warm-up, or under a rate that creeps up, the loss
first stops falling, then climbs slowly, while the rate is above any with which it still reached a new low.
Where the rate does not rise, nothing is found. Measured against other signals in
``tests/benchmarks/early_warning``.
"""

from __future__ import annotations

import math
from collections import deque
from dataclasses import dataclass
from itertools import pairwise
from statistics import fmean
from typing import Any

_LEVEL = 25
"""Losses in the level, their mean: it has a fifth of one loss's noise."""
_HIGHER = 1.5
"""The rate is above the others from this multiple on: by then a new low was due."""
_ABOVE = 2.5
"""Standard deviations of the difference of two levels."""
_LEAST = 0.03
"""A climb by less than this share of the lowest level is none, however quiet the loss is; ..."""
_FLOOR, _FLOOR_SHARE = 0.01, 0.015
"""... nor by less than this, or than this share of the first level where that is less."""
_DEVIATION = 0.6147 * math.sqrt(2 / _LEVEL)
"""Of the difference of two levels, in units of the loss's roughness (see ``baseline``)."""
_MOST = 100.0
"""The score of a loss without noise."""
_QUIET = 50
"""After this many attempts without a climb the next one is another warning: two levels."""


@dataclass(frozen=True, slots=True)
class Climb:
    """The loss has climbed since the rate passed ``rate``.

    Attributes:
        score: how far, in standard deviations of the difference of two levels.
        lowest: the level from which.
        level: to which.
        rate: the highest with which the loss reached a new low.
    """

    score: float
    lowest: float
    level: float
    rate: float


class RisingRate:
    """Follows the level of the loss, and the highest rate with which it still reached a new low."""

    def __init__(self) -> None:
        self.hold = 1.0
        """What the rate is multiplied by at present, so that it stays where the loss was still falling."""
        self._losses: deque[float] = deque(maxlen=_LEVEL)
        self._first = self._lowest = math.inf
        self._rate = 0.0
        self._since = _QUIET
        """Attempts since the loss was last found to climb."""

    def observe(self, loss: float, rate: float) -> Climb | None:
        """One attempt that nothing else is wrong with.

        Args:
            loss: agreed.
            rate: of its update.

        Returns:
            The climb, on the attempt with which a warning begins.
        """
        losses = self._losses
        losses.append(loss)
        if len(losses) < _LEVEL:
            if self._lowest == math.inf:
                self._rate = max(self._rate, rate)
            return None
        level = fmean(losses)
        if level < self._lowest:
            self._lowest, self._rate = level, max(self._rate, rate)
            if self._first == math.inf:
                self._first = abs(level)
        self._since += 1
        climb = level - self._lowest
        if not rate > _HIGHER * self._rate > 0.0 or climb <= self._least():
            return None
        return self._judge(level)

    def _least(self) -> float:
        return max(_LEAST * abs(self._lowest), min(_FLOOR, _FLOOR_SHARE * self._first))

    def _judge(self, level: float) -> Climb | None:
        climb, deviation = level - self._lowest, _DEVIATION * _roughness(self._losses)
        if climb <= _ABOVE * deviation:
            return None
        begins, self._since = self._since >= _QUIET, 0
        score = climb / max(deviation, climb / _MOST)
        return Climb(score, self._lowest, level, self._rate) if begins else None

    def held(self, rate: float) -> float:
        """The factor that keeps ``rate`` where the loss still fell; 1 once the schedule is below it."""
        return min(1.0, self._rate / rate) if rate > 0.0 else 1.0

    def rolled_back(self) -> None:
        """The losses since are void; which rate brought the loss how low is not."""
        self._losses.clear()

    def relearn(self) -> None:
        """A change on purpose: the lowest level is none any more, and the rate with it is the present one."""
        self._losses.clear()
        self._lowest = math.inf

    def state_dict(self) -> dict[str, Any]:
        return {
            "hold": self.hold,
            "losses": list(self._losses),
            "first": self._first,
            "lowest": self._lowest,
            "rate": self._rate,
            "since": self._since,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self._losses = deque(map(float, state["losses"]), maxlen=_LEVEL)
        self.hold, self._since = float(state["hold"]), int(state["since"])
        self._first, self._lowest = float(state["first"]), float(state["lowest"])
        self._rate = float(state["rate"])


def _roughness(values: deque[float]) -> float:
    """The upper quartile of the distances between neighbours: noise, without the trend."""
    distances = sorted(abs(after - before) for before, after in pairwise(values))
    return distances[3 * len(distances) // 4]
