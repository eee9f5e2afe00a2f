"""Weights that move ever farther while the loss gains nothing: the rate in use is not the declared one.

A rate that creeps up inside the optimizer makes neither loss nor gradient jump. It shows in the distance that
the weights move per unit of the learning rate that the optimizer declares, where no gradient explains it.
Reasons in steps assume the default of 25 steps between two measurements.
"""

from __future__ import annotations

import math
from collections import deque
from dataclasses import asdict, dataclass
from typing import Any

_LONG = math.log(3)
"""An update is long from three times the longest ordinary one on: less is noise."""
_RUNAWAY = math.log(6)
"""Six times is too far if the update before was long too: 25 random steps add up to sqrt(25) = 5 step lengths
and 25 equal ones to 25, so a change of direction alone gains a factor of 5."""
_MEMORY = 8
"""Ordinary updates that are remembered: 200 steps, so that the longest follows the schedule."""
_LEAST = 3
"""The longest of fewer ordinary updates is no measure."""
_PATIENCE = 4
"""Four long updates in a row (100 steps) without a runaway are the new normal."""
_MIN_ROWS_APART = 16
"""Rows between two samples that count: snapshots are measured out of turn, and one bad batch must not be in
both samples. Less than 25, so that no regular sample is lost."""


@dataclass(frozen=True, slots=True)
class UpdateSample:
    """A measurement, all on the log scale but for a loss that has no logarithm.

    Attributes:
        update_norm: distance of the weights per unit of learning rate.
        loss: the level of the loss.
        grad_norm: the level of the gradient norm, or that of this very step where it is larger.
    """

    update_norm: float
    loss: float
    grad_norm: float


class RunawayUpdates:
    """Remembers ordinary updates; finds a long one after a long one that the loss gained nothing from."""

    __slots__ = ("_long", "_ordinary", "_row")

    def __init__(self) -> None:
        self._ordinary: deque[UpdateSample] = deque(maxlen=_MEMORY)
        self._long: list[UpdateSample] = []
        self._row = 0

    def longest_if_runaway(self, row: int, sample: UpdateSample) -> float | None:
        """The longest ordinary update, if this one goes too far beyond it. Learns nothing."""
        if not self._long or row - self._row < _MIN_ROWS_APART or sample.loss <= self._ordinary[-1].loss:
            return None
        longest = max(self._ordinary, key=lambda s: s.update_norm)
        explained = max(0.0, sample.grad_norm - longest.grad_norm)
        farther = sample.update_norm - longest.update_norm - explained
        return longest.update_norm if farther >= _RUNAWAY else None

    def learn(self, row: int, sample: UpdateSample, *, spike: bool) -> None:
        """Remembers the update, unless it belongs to a spike; long ones must recur to be ordinary."""
        if row - self._row < _MIN_ROWS_APART:
            return
        self._row = row
        ordinary = self._ordinary
        if spike:
            self._long = []
        elif len(ordinary) < _LEAST or sample.update_norm - max(s.update_norm for s in ordinary) < _LONG:
            ordinary.append(sample)
            self._long = []
        else:
            self._long.append(sample)
            if len(self._long) == _PATIENCE:
                ordinary.extend(self._long)
                self._long = []

    def clear(self) -> None:
        """Forgets everything but the row: the loss is on another scale now."""
        self._ordinary.clear()
        self._long = []

    def state_dict(self) -> dict[str, Any]:
        return {
            "ordinary": [asdict(s) for s in self._ordinary],
            "long": [asdict(s) for s in self._long],
            "row": self._row,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.clear()
        self._ordinary.extend(UpdateSample(**s) for s in state["ordinary"])
        self._long = [UpdateSample(**s) for s in state["long"]]
        self._row = int(state["row"])
