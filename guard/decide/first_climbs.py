"""The climbs of the loss after which a run returns to its start: is the learning rate their cause?"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

_SAME = 0.8
"""A climb per step of at least this share of the one before a cut has another cause than the rate."""
_AS_EARLY = 2.0
"""If it comes after as many attempts, up to this factor."""


@dataclass(slots=True)
class FirstClimbs:
    """One for each return; the first returned with the same rate, the others with a third of it."""

    _per_step: list[float] = field(default_factory=list)
    """In units of the loss before the first update."""
    _after: list[int] = field(default_factory=list)
    """The attempts from the start to each."""

    def __len__(self) -> int:
        return len(self._per_step)

    def add(self, climb: float, attempts: int) -> None:
        """A climb, in units of the loss before the first update, that took so many attempts."""
        self._per_step.append(climb / attempts)
        self._after.append(attempts)

    def unmoved(self) -> bool:
        """Whether the last two cuts changed nothing.

        In a warm-up a lower rate becomes too high later, at the same speed.
        """
        last = [climb for climb in self._per_step[1:][-3:] if math.isfinite(climb)]
        as_early = max(self._after[-3:]) <= _AS_EARLY * min(self._after[-3:])
        return len(last) == 3 and as_early and last[2] > _SAME * last[1] > _SAME**2 * last[0]

    def state_dict(self) -> dict[str, Any]:
        return {"climbs": list(self._per_step), "after": list(self._after)}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self._per_step = [*map(float, state["climbs"])]
        self._after = [*map(int, state.get("after", [1] * len(self._per_step)))]
