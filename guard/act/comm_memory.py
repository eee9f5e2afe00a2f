"""What a communication hook remembers of earlier gradients: a bad batch must leave no trace there either."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

_ERRORS, _FACTORS = "error_dict", ("p_memory_dict", "q_memory_dict")
"""Of torch's ``PowerSGDState``: what was not sent, new in each step; its factors, written in place."""


class CommMemory:
    """PowerSGD adds what it could not send to the next gradient: one NaN would stay in all that follow.

    Args:
        states: of the present hooks; those without such a memory are left alone.
    """

    def __init__(self, states: Callable[[], Iterable[Any]]) -> None:
        self._find = states
        self._kept: dict[int, dict[str, Any]] = {}

    def accept(self) -> None:
        """The step was applied: keeps what is remembered now."""
        for state in self._states():
            factors = {n: {i: t.clone() for i, t in getattr(state, n).items()} for n in _FACTORS}
            kept = {_ERRORS: dict(getattr(state, _ERRORS)), **factors}
            self._kept[id(state)] = kept | {"iter": state.iter, "rng": state.rng.get_state()}

    def release(self) -> None:
        """What was accepted is no longer known to be what was before the present batch."""
        self._kept = {}

    def revert(self, *, forget: bool = False) -> None:
        """As it was when accepted; ``forget``: empty, since the gradients were of weights that are gone."""
        for state in self._states():
            kept = self._kept.get(id(state), {})
            for name in (_ERRORS, *_FACTORS):
                tensors = {} if forget else kept.get(name, {})
                getattr(state, name).clear()
                getattr(state, name).update({i: t.clone() for i, t in tensors.items()})
            if kept:
                state.iter = kept["iter"]
                state.rng.set_state(kept["rng"])

    def _states(self) -> list[Any]:
        return [state for state in self._find() if isinstance(getattr(state, _ERRORS, None), dict)]
