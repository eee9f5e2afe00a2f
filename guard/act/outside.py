"""Weights that the loop changes between two steps: a model is loaded, a layer gets new weights."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from guard.observe.shards import versions

_PROBES = 32
FROZEN = 4
"""Weights that no snapshot holds were changed."""
_QUIET_ATTEMPTS = 16
"""A loop that changes weights more often does so by design (a clamp, a projection)."""


class OutsideChanges:
    """Notices when weights were changed between two attempts, in a loop that seldom does so.

    All of them: a model was loaded. Only some of them, for the first time: it may be a fault. From the second
    time on it is what the loop does (layers, heads, dead units that get new weights).

    Frozen weights that are changed (an adapter is merged into them) are in no snapshot: the state with them
    is the only one that a rollback can restore exactly.

    Args:
        parameters: a list that follows what is trained.
        unheld: a list that follows what is frozen and in no snapshot.
    """

    def __init__(self, parameters: Sequence[Tensor], unheld: Sequence[Tensor] = ()) -> None:
        self._trained, self._unheld = _Writes(parameters), _Writes(unheld)
        self._known = False
        """Whether weights were changed between two steps, and seldom, before."""

    def watch(self) -> None:
        """Ends an attempt: what changes the weights before the next one is not the guard."""
        self._trained.watch()
        self._unheld.watch()

    def found(self) -> int:
        """1 if all weights were changed since ``watch``, 2 if any were, not for the first time; else 0.
        ``FROZEN`` is added where frozen ones were."""
        frozen = FROZEN * (self._unheld.found() is not None)
        every = self._trained.found()
        if every is None:
            return frozen
        again, self._known = self._known, True
        return frozen + (2 if again else int(every))


class _Writes:
    """Notices that some of these tensors were written between two attempts, after a while without."""

    def __init__(self, tensors: Sequence[Tensor]) -> None:
        self._tensors = tensors
        self._versions: list[int] | None = None
        self._quiet = 0
        """Attempts since they were written."""

    def watch(self) -> None:
        self._versions = self._probe()

    def found(self) -> bool | None:
        """Whether all were written since ``watch``; None if none was, or they are all the time."""
        now = self._probe()
        if self._versions is None or self._versions == now:
            self._quiet += 1
            return None
        lone, self._quiet = self._quiet >= _QUIET_ATTEMPTS, 0
        return not any(a == b for a, b in zip(self._versions, now, strict=False)) if lone else None

    def _probe(self) -> list[int]:
        """The versions of a few tensors, of all where they are few."""
        return versions(self._tensors[:: 1 + len(self._tensors) // _PROBES])
