"""The learning rate of a window of steps, by which the distance that they covered is divided."""

from __future__ import annotations

import math
from typing import Any

_WILD = 3.0
"""How many times above all others of its window, and all before that, a single rate is wild."""


class WindowRate:
    """The root mean square of the rates: steps in random directions add up by their squares.

    A schedule that falls to a hundredth, or starts again, within a window then never looks like weights that
    moved too far.
    """

    def __init__(self) -> None:
        self._rates: list[float] = []
        self._highest = 0.0
        """Of the windows before; a wild one does not count."""

    def state_dict(self) -> dict[str, Any]:
        return {"window": list(self._rates), "highest": self._highest}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self._rates = [float(rate) for rate in state["window"]]
        self._highest = float(state["highest"])

    def add(self, rate: float) -> None:
        """The rate of one step."""
        self._rates.append(rate)

    def clear(self) -> None:
        """The window begins again."""
        self._rates.clear()

    @property
    def empty(self) -> bool:
        return not self._rates

    def take(self, *, whole: bool) -> float:
        """The rate of the window that ends here, which is not empty.

        Args:
            whole: counts a wild rate too; otherwise what it did stays visible in the distance.
        """
        rates = self._counted(whole=whole)
        self._rates.clear()
        self._highest = max(self._highest, rates[-1])
        return math.sqrt(math.fsum(rate * rate for rate in rates) / len(rates))

    def _counted(self, *, whole: bool) -> list[float]:
        rates = sorted(self._rates)
        if not whole and len(rates) > 1 and rates[-1] > _WILD * max(rates[-2], self._highest):
            rates.pop()
        return rates
