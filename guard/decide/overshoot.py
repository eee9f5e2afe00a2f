"""Steps that are too long, seen on the batch's own loss: computed again after its step, it fell by less than
half of what the gradient predicts.

In units of the predicted change, a step of size s along a parabola changes the loss by -1 + s / 2, with s = 1
at the bottom and s = 2 as high as before: -0.5 is the best step, 0 the edge of stability (Cohen et al. 2021).
It needs no history and no scale, and holds for any optimizer.
"""

from __future__ import annotations

import math
from collections import deque
from statistics import fmean
from typing import Any

MEASURED = 8
"""One measurement says little: a first step of Adam overshoots at rates that are right."""
_EVERY = 5
_SHARE = 40
"""In a long warm-up it is measured once in a fortieth of the steps so far."""
_LIMIT = -0.4
"""Of the mean of eight, each at most 1: -0.55 and less at rates that train best, where the loss has not yet
fallen."""
_TOTAL_LIMIT = -0.25
"""Of all changes over all predicted ones: -0.37 and less there. One first step that spoils the weights weighs
most in it."""


class Overshoot:
    """The last measurements of a run that began ``attempts`` ago."""

    def __init__(self) -> None:
        self._changes: deque[tuple[float, float]] = deque(maxlen=MEASURED)
        self.highest = -1.0
        """The highest mean of eight so far."""

    def due(self, attempts: int) -> bool:
        """Whether the coming attempt is to be measured."""
        return attempts % max(_EVERY, attempts // _SHARE) == 0

    def add(self, change: float, predicted: float) -> None:
        """One step.

        Args:
            change: of the batch's own loss by its step.
            predicted: by its gradient, to first order: <g, dw>; 0 where nothing moved.
        """
        if predicted == 0.0:
            return
        self._changes.append((change, predicted))
        if len(self._changes) == MEASURED:
            self.highest = max(self.highest, self._mean)

    def clear(self) -> None:
        """A new start."""
        self._changes.clear()
        self.highest = -1.0

    @property
    def _mean(self) -> float:
        return fmean(_share(*one) for one in self._changes)

    @property
    def found(self) -> float | None:
        """The change in units of the predicted one, if it shows that steps are too long."""
        if len(self._changes) < MEASURED:
            return None
        changes, predicted = map(math.fsum, zip(*self._changes, strict=True))
        mean, total = self._mean, _share(changes, predicted)
        return max(mean, total) if mean > _LIMIT or total > _TOTAL_LIMIT else None

    def state_dict(self) -> dict[str, Any]:
        return {"changes": [list(one) for one in self._changes], "highest": self.highest}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        pairs = ((float(change), float(predicted)) for change, predicted in state["changes"])
        self._changes = deque(pairs, maxlen=MEASURED)
        self.highest = float(state.get("highest", -1.0))


def _share(change: float, predicted: float) -> float:
    if not (predicted < 0.0 and math.isfinite(change) and math.isfinite(predicted)):
        return 1.0
    return min(1.0, max(-1.0, change / -predicted))
