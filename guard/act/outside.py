"""Weights that the loop changes between two steps: a model that is loaded in the middle of a run."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from guard.observe.shards import version

_PROBES = 8
_QUIET_ATTEMPTS = 16
"""A loop that changes weights more often does so by design (a clamp, a projection)."""


class OutsideChanges:
    """Notices when all weights were changed between two attempts, in a loop that seldom does so.

    Args:
        parameters: a list that follows what is trained.
    """

    def __init__(self, parameters: Sequence[Tensor]) -> None:
        self._parameters = parameters
        self._versions: list[int] | None = None
        self._quiet = 0
        """Attempts since the weights were changed between two steps."""

    def watch(self) -> None:
        """Ends an attempt: what changes the weights before the next one is not the guard."""
        self._versions = self._probe()

    def found(self) -> bool:
        """Whether all weights were changed since ``watch``."""
        now = self._probe()
        if self._versions is None or self._versions == now:
            self._quiet += 1
            return False
        lone, self._quiet = self._quiet >= _QUIET_ATTEMPTS, 0
        return lone and not any(a == b for a, b in zip(self._versions, now, strict=False))

    def _probe(self) -> list[int]:
        """The versions of a few parameters: loading a model writes them all."""
        return list(map(version, self._parameters[:: 1 + len(self._parameters) // _PROBES]))
