"""Weights that the loop changes between two steps: a model is loaded, a layer gets new weights."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from guard.observe.shards import versions

_PROBES = 32
_QUIET_ATTEMPTS = 16
"""A loop that changes weights more often does so by design (a clamp, a projection)."""


class OutsideChanges:
    """Notices when weights were changed between two attempts, in a loop that seldom does so.

    All of them: a model was loaded. Only some of them, for the first time: it may be a fault. From the second
    time on it is what the loop does (layers, heads, dead units that get new weights).

    Args:
        parameters: a list that follows what is trained.
    """

    def __init__(self, parameters: Sequence[Tensor]) -> None:
        self._parameters = parameters
        self._versions: list[int] | None = None
        self._quiet = 0
        """Attempts since the weights were changed between two steps."""
        self._known = False
        """Whether they were, and seldom, before."""

    def watch(self) -> None:
        """Ends an attempt: what changes the weights before the next one is not the guard."""
        self._versions = self._probe()

    def found(self) -> int:
        """1 if all weights were changed since ``watch``, 2 if any were, not for the first time; else 0."""
        now = self._probe()
        if self._versions is None or self._versions == now:
            self._quiet += 1
            return 0
        lone, self._quiet = self._quiet >= _QUIET_ATTEMPTS, 0
        every = not any(a == b for a, b in zip(self._versions, now, strict=False))
        again, self._known = self._known, self._known or lone
        return 0 if not lone else 2 if again else int(every)

    def _probe(self) -> list[int]:
        """The versions of a few parameters, of all where they are few."""
        return versions(self._parameters[:: 1 + len(self._parameters) // _PROBES])
