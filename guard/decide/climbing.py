"""A warning before the explosion: the loss climbs under a rate that is too high, or under updates that are.

A rate that is too high seldom explodes at once. The loss first stops falling, then climbs slowly, while the
rate is above any with which it still reached a new low (a long warm-up, a rate that creeps up), or while a
few steps replace a large part of the weights. Where neither is so, nothing is found. Measured against other
signals in ``tests/benchmarks/early_warning``.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from statistics import fmean
from typing import Any

from torch import Tensor

_LEVEL = 25
"""Losses in the level, their mean: it has a fifth of one loss's noise."""
_HIGHER = 1.1
"""The rate is above the others from this multiple on: a smaller rise explains no climb."""
_RISEN, _MOST_RISEN = 1.0, 3.0
"""The logarithm of that multiple, at most of this one, times the standard deviations by which the loss has
climbed: a rate that is 1.5 times as high needs 2.5 of them, one that is three times as high, or more, 0.9."""
_ABOVE = 2.5
"""Standard deviations of the difference of two levels: a climb without further evidence."""
_FAR = 0.02
"""Updates are long from this change of the network by a step on: the mean distance of the weights over their
norm, times the square root of the layers, whose changes add up (as in deep relative trust, Bernstein 2020).
A healthy start may be that fast, but then the loss falls."""
_LONG = 0.027
"""That change, times the standard deviations: the longer the updates are, the smaller a climb will do. A
lower limit announces no more explosions of the networks it was chosen on, and warns of more right rates."""
_MOST_LAYERS = 16
"""More count as so many: no deeper network was measured."""
_RESTARTS = 2.0
"""A rate that the run had before, and is this multiple of the one with which the loss was lowest, has been
restarted: its level is above that by design, and is learned again."""
_START = 50
"""Attempts in which long updates are no evidence, two levels: ``start_rate`` judges those."""
_EASED = 3.0
"""What a rate whose updates are long is divided by, at each measurement."""
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
    """The loss has climbed, and its rate is too high.

    Attributes:
        score: how far, in standard deviations of the difference of two levels.
        lowest: the level from which.
        level: to which.
        rate: what the rate should be at most.
        moved: the mean distance of a step over the norm of the weights, where that is the evidence; else the
            rate itself is, and ``rate`` the highest with which the loss reached a new low.
    """

    score: float
    lowest: float
    level: float
    rate: float
    moved: float | None = None


class Climbing:
    """Follows the level of the loss, the highest rate with which it still reached a new low, and the updates.

    Updates are known where they are measured (``update_norm``).

    Args:
        layers: weight matrices of the network.
    """

    def __init__(self, layers: int) -> None:
        self.layers = layers
        self.hold = 1.0
        """What the rate is multiplied by at present, so that it stays where the loss was still falling."""
        self.by_design = False
        self._losses: deque[float] = deque(maxlen=_LEVEL)
        self._first = self._lowest = math.inf
        self._rate = self._highest = 0.0
        self._lowest_rates = 0.0, 0.0
        """The rate when the loss was lowest, and the highest before that."""
        self._cap = math.inf
        """The rate at which it is held."""
        self._moved: float | None = None
        self._seen = 0
        self._eased: tuple[int, float] | None = None
        """When the rate was last eased, and the level of the loss then."""
        self._since = _QUIET
        """Attempts since the loss was last found to climb."""

    def observe(self, loss: float, rate: float, moved: float | None = None) -> Climb | None:
        """One attempt that nothing else is wrong with.

        Args:
            loss: agreed.
            rate: of its update.
            moved: the mean distance of a step over the norm of the weights (``Movement.ratio``), where it was
                measured.

        Returns:
            The climb, on the attempt with which a warning begins.
        """
        losses = self._losses
        lowest_rate, highest = self._lowest_rates
        if self._lowest < math.inf and _RESTARTS * lowest_rate < rate <= _HIGHER * highest:
            self.relearn()
        self._highest = max(self._highest, rate)
        losses.append(loss)
        self._seen += 1
        self._moved = self._moved if moved is None else moved
        if len(losses) < _LEVEL:
            if self._lowest == math.inf:
                self._rate = max(self._rate, rate)
            return None
        level = fmean(losses)
        if level < self._lowest:
            self._lowest, self._rate = level, max(self._rate, rate)
            self._lowest_rates = rate, self._highest
            if self._first == math.inf:
                self._first = abs(level)
        self._since += 1
        if self._eased is not None and self._seen - self._eased[0] >= 2 * _LEVEL:
            if self.hold < 1.0 and level - self._eased[1] > _ABOVE * _DEVIATION * _roughness(losses):
                self.ignore()
            self._eased = None
        climb = self._climb(level, rate)
        if climb is None or self.by_design:
            return None
        self._cap, begins, self._since = climb.rate, self._since >= _QUIET, 0
        return climb if begins else None

    def _climb(self, level: float, rate: float) -> Climb | None:
        rise, lowest = level - self._lowest, self._lowest
        risen, far = self._risen(rate), self._far() if rate > 0.0 else 0.0
        if rise <= min(_FLOOR, _FLOOR_SHARE * self._first) or not (risen or far):
            return None
        if (math.fsum(self._losses) - max(self._losses)) / (_LEVEL - 1) <= lowest:
            return None  # one loss alone is no climb
        deviation = _DEVIATION * _roughness(self._losses)
        score = rise / max(deviation, rise / _MOST)
        if risen * score > _RISEN and rise > _LEAST * abs(lowest):
            return Climb(score, lowest, level, self._rate)
        if far * score > _LONG:
            moved, self._moved = self._moved, None
            self._eased = self._seen, level
            return Climb(score, lowest, level, rate / _EASED, moved)
        return None

    def _risen(self, rate: float) -> float:
        """The logarithm of the rate over the highest with which the loss reached a new low; else 0."""
        if not rate > _HIGHER * self._rate > 0.0:
            return 0.0
        return math.log(min(_MOST_RISEN, rate / self._rate))

    def _far(self) -> float:
        """The change of the network by a step; 0 where that is not long, or not known."""
        if self._seen <= _START or self._moved is None:
            return 0.0
        far = self._moved * math.sqrt(min(max(self.layers, 1), _MOST_LAYERS))
        return far if far > _FAR else 0.0

    def held(self, rate: float) -> float:
        """The factor that keeps ``rate`` where it should be; 1, and free again, once it is below that."""
        if not rate > self._cap:
            self._cap = math.inf
        return min(1.0, self._cap / rate) if rate > 0.0 else 1.0

    def rolled_back(self) -> None:
        """The losses and distances since are void; which rate brought the loss how low is not."""
        self._losses.clear()
        self._moved = None

    def relearn(self) -> None:
        """A change on purpose: the lowest level is none any more, and the rate with it is the present one."""
        self._losses.clear()
        self._lowest, self._moved, self._seen, self._eased = math.inf, None, 0, None

    def start_again(self) -> None:
        """From the first weights: no rate is held any more either."""
        self.relearn()
        self.hold, self._cap = 1.0, math.inf

    def ignore(self) -> None:
        """The loss climbs by design, at lower rates too: the rate is let go, nothing is found any more."""
        self.by_design, self.hold, self._cap = True, 1.0, math.inf

    def state_dict(self) -> dict[str, Any]:
        return {
            "hold": self.hold,
            "by_design": self.by_design,
            "seen": self._seen,
            "eased": self._eased,
            "losses": list(self._losses),
            "first": self._first,
            "lowest": self._lowest,
            "rate": self._rate,
            "lowest_rates": list(self._lowest_rates),
            "highest": self._highest,
            "since": self._since,
            "cap": self._cap,
            "moved": self._moved,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self._losses = deque(map(float, state["losses"]), maxlen=_LEVEL)
        self.hold, self._since = float(state["hold"]), int(state["since"])
        self._first, self._lowest = float(state["first"]), float(state["lowest"])
        self._eased = None if state.get("eased") is None else tuple(state["eased"])
        self._rate, self._seen = float(state["rate"]), int(state.get("seen", _START))
        self._highest = float(state.get("highest", self._rate))
        lowest, highest = state.get("lowest_rates", [self._rate, self._rate])
        self._lowest_rates = float(lowest), float(highest)
        self._cap = float(state.get("cap", self._rate if self.hold < 1.0 else math.inf))
        self._moved, self.by_design = state.get("moved"), bool(state.get("by_design", False))


def layers(parameters: Sequence[Tensor]) -> int:
    """Weight matrices, kernels and embeddings among them."""
    return sum(parameter.dim() >= 2 for parameter in parameters)


def _roughness(values: deque[float]) -> float:
    """The upper quartile of the distances between neighbours: noise, without the trend."""
    distances = sorted(abs(after - before) for before, after in pairwise(values))
    return distances[3 * len(distances) // 4]
