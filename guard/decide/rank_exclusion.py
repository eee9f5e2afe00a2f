"""A rank whose data stays bad is excluded: a batch that looks bad is computed again without it.

The ladder comes first: a rank is excluded only once it caused several recent bad steps, so that one bad batch
is skipped or rolled back as usual. Exclusions are limited: data that stays different for long is the run's
new normal, and the ladder decides again.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np

from guard.config import ExclusionConfig
from guard.types import Agreed, Floats

_ABOVE = 3.0
"""A rank's own gradient stands out if its norm is this many times the median of the others': from three times
on a norm alone is suspect (``detector._NORM_SUSPECT``), and healthy ranks differ by far less."""


class RankExclusion:
    """Which rank to exclude from a bad batch. Pure, and equal on every rank."""

    def __init__(self, config: ExclusionConfig) -> None:
        self._config = config
        self._bad: deque[tuple[int, int]] = deque()
        self._exclusions = 0

    def culprit(
        self, attempt: int, agreed: Agreed, local_norms: Floats, fine: Callable[[float], bool]
    ) -> int | None:
        """The rank that alone makes a batch bad, if it did so often enough to be excluded; counts it.

        Args:
            attempt: the present one.
            agreed: what is known of the batch.
            local_norms: each rank's own gradient norm, NaN where it was not taken.
            fine: whether a batch of this loss would be ``ok``.
        """
        if self._config.after is None or len(agreed.losses) < 2 or agreed.dropped_micro_batches:
            return None
        rank = _outlier(agreed.losses, local_norms, fine)
        if rank is None:
            return None
        self._forget(attempt)
        self._bad.append((attempt, rank))
        mine = sum(culprit == rank for _, culprit in self._bad)
        return rank if mine >= self._config.after and self._exclusions < self._config.limit else None

    def count(self) -> None:
        """The rank that ``culprit`` named was excluded, and that helped."""
        self._exclusions += 1

    def _forget(self, attempt: int) -> None:
        while self._bad and self._bad[0][0] <= attempt - self._config.window_steps:
            self._bad.popleft()
        if not self._bad:
            self._exclusions = 0

    def state_dict(self) -> dict[str, Any]:
        return {"bad": [list(entry) for entry in self._bad], "exclusions": self._exclusions}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self._bad = deque((int(attempt), int(rank)) for attempt, rank in state["bad"])
        self._exclusions = int(state["exclusions"])


def without(agreed: Agreed, rank: int) -> Agreed:
    """What is known of a batch without one rank: its loss is the mean of the others'."""
    return replace(agreed, loss=_others(agreed.losses, rank), buffer_jump=None)


def _outlier(losses: Floats, norms: Floats, fine: Callable[[float], bool]) -> int | None:
    """The one rank without which the batch is fine: by its loss or, where that is fine, by its gradient."""
    if not fine(float(losses.mean())):
        rank = _largest(losses)
        return rank if fine(_others(losses, rank)) else None
    rank = _largest(norms)
    rest = np.delete(norms, rank)
    stands_out = np.isfinite(rest).all() and not norms[rank] <= _ABOVE * np.median(rest)
    return rank if stands_out else None


def _largest(values: Floats) -> int:
    return int(np.argmax(np.where(np.isfinite(values), values, math.inf)))


def _others(losses: Floats, rank: int) -> float:
    return float(np.delete(losses, rank).mean())
