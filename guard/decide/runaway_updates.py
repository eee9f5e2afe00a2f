"""Weights that move ever farther and get nowhere: the learning rate is not what it says it is.

A rate that creeps up inside the optimizer makes neither loss nor gradient jump. It shows in the distance that
the weights move per unit of the learning rate that the optimizer declares, where no gradient explains it.
"""

from __future__ import annotations

import math
from collections import deque
from dataclasses import asdict, dataclass
from typing import Any

_FAR = math.log(3)
"""A stretch is long from three times the longest ordinary one on, and ..."""
_TOO_FAR = math.log(6)
"""... six times is too far, if the stretch before was long too: 25 steps that all went at random, and now all
go the same way, gain 5."""
_MEMORY = 8
"""Ordinary stretches that are remembered."""
_LEAST = 3
"""Without so many there is nothing to compare with."""
_PATIENCE = 4
"""So many long stretches in a row are ordinary from then on."""
_APART = 16
"""Rows between two measurements that count, so that one bad batch is not in both."""


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
    """Remembers ordinary stretches; tells a long one after a long one that the loss gained nothing from."""

    __slots__ = ("_long", "_ordinary", "_row")

    def __init__(self) -> None:
        self._ordinary: deque[UpdateSample] = deque(maxlen=_MEMORY)
        self._long: list[UpdateSample] = []
        self._row = 0

    def judge(self, row: int, stretch: UpdateSample) -> float | None:
        """The longest ordinary movement, if this stretch goes too far beyond it. Learns nothing."""
        if not self._long or row - self._row < _APART or stretch.loss <= self._ordinary[-1].loss:
            return None
        longest = max(self._ordinary, key=lambda s: s.update_norm)
        explained = max(0.0, stretch.grad_norm - longest.grad_norm)
        farther = stretch.update_norm - longest.update_norm - explained
        return longest.update_norm if farther >= _TOO_FAR else None

    def settle(self, row: int, stretch: UpdateSample, *, spike: bool) -> None:
        """Remembers the stretch, unless it belongs to a spike; a long one has to come back to be ordinary."""
        if row - self._row < _APART:
            return
        self._row = row
        ordinary = self._ordinary
        if spike:
            self._long = []
        elif len(ordinary) < _LEAST or stretch.update_norm - max(s.update_norm for s in ordinary) < _FAR:
            ordinary.append(stretch)
            self._long = []
        else:
            self._long.append(stretch)
            if len(self._long) == _PATIENCE:
                ordinary.extend(self._long)
                self._long = []

    def clear(self) -> None:
        """Forgets everything but the row: the loss is on another scale now."""
        self._ordinary.clear()
        self._long = []

    def state_dict(self) -> dict[str, Any]:
        """Plain lists, dictionaries and a number."""
        return {
            "ordinary": [asdict(s) for s in self._ordinary],
            "long": [asdict(s) for s in self._long],
            "row": self._row,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continues from ``state_dict``."""
        self.clear()
        self._ordinary.extend(UpdateSample(**s) for s in state["ordinary"])
        self._long = [UpdateSample(**s) for s in state["long"]]
        self._row = int(state["row"])
