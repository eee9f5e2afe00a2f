"""Optimizers that find their own rate: Prodigy, D-Adaptation, DoG, schedule-free, Rprop.

All but Rprop keep what they found in their groups, beside ``lr``: distances per unit of ``lr`` then grow by
design.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

from torch import Tensor
from torch.optim import Optimizer, Rprop

_OF_A_SCHEDULE = frozenset(
    {"params", "lr", "initial_lr", "max_lr", "min_lr", "base_lr", "betas", "weight_decay"}
)
_OF_MOMENTUM = frozenset({"momentum", "max_momentum", "base_momentum"})
"""What schedules write into a group."""


def declared_rate(optimizer: Optimizer, number: Callable[[Any], float] = float) -> float:
    """``lr`` of the first group as a ``number``; NaN where it has none, as Adafactor with a relative step."""
    rate = optimizer.param_groups[0].get("lr")
    return math.nan if rate is None else number(rate)


def step_size(optimizer: Optimizer) -> float:
    """What the rate is multiplied with: ``d`` of Prodigy and D-Adaptation, else 1."""
    found = optimizer.param_groups[0].get("d")
    return float(found) if isinstance(found, (int, float)) else 1.0


class OwnRate:
    """Notices that the optimizer writes numbers of its own into its groups."""

    def __init__(self, optimizer: Optimizer) -> None:
        self._optimizer = optimizer
        self._marks: dict[str, Any] = {}
        self.found = isinstance(optimizer, Rprop)
        """Rprop has a step size for each weight, and ``lr`` is only the first of them."""

    @property
    def hidden(self) -> bool:
        """Whether it has a rate of its own, and not under a name that ``step_size`` reads."""
        return self.found and not isinstance(self._optimizer.param_groups[0].get("d"), (int, float))

    def start(self) -> None:
        """What the groups hold now was not written by a step."""
        self._marks = self._read()

    def check(self) -> None:
        """After steps: has one of them written there? Reads no device."""
        marks = self._read()
        self.found = self.found or marks != self._marks
        self._marks = marks

    def _read(self) -> dict[str, Any]:
        group = self._optimizer.param_groups[0]
        marks = {
            key: _mark(value) for key, value in group.items() if key not in _OF_A_SCHEDULE | _OF_MOMENTUM
        }
        return {key: mark for key, mark in marks.items() if mark is not None}


def _mark(value: Any) -> Any:
    """Changes with a number that is no count, and with a tensor or a list that is replaced or written to."""
    if isinstance(value, Tensor):
        return id(value), value._version
    if isinstance(value, float):
        return value
    return id(value) if isinstance(value, list) else None
