"""The learning rate of the last attempts: does it explain what the run does?"""

from __future__ import annotations

from collections import deque
from itertools import islice
from typing import Any

_MEMORY = 32
_RECENT = 3
"""An update shows one or two attempts later, so the cause is among the last three rates."""
_ROSE = 3.0
"""A linear warm-up doubles the rate against its median; three times that is a jump."""


class RateHistory:
    """The rates of the last attempts and the highest before them."""

    def __init__(self) -> None:
        self._rates: deque[float] = deque(maxlen=_MEMORY)
        self._highest = 0.0

    def push(self, rate: float) -> None:
        """The rate of an attempt."""
        if len(self._rates) == _MEMORY:
            self._highest = max(self._highest, self._rates[0])
        self._rates.append(rate)

    def forget_recent(self) -> None:
        """They were rolled back: they are none that the run has had."""
        for _ in range(min(_RECENT, len(self._rates))):
            self._rates.pop()

    @property
    def rose(self) -> bool:
        """Whether it has just jumped, above all that the run has had: not at the restart of a schedule."""
        before = sorted(islice(self._rates, max(0, len(self._rates) - _RECENT)))
        if not before:
            return False
        recent = max(islice(self._rates, len(before), None))
        return recent > _ROSE * before[len(before) // 2] and recent > max(self._highest, before[-1])

    def state_dict(self) -> dict[str, Any]:
        return {"rates": list(self._rates), "highest": self._highest}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self._rates = deque(map(float, state["rates"]), maxlen=_MEMORY)
        self._highest = float(state["highest"])
