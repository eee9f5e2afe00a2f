"""Does the gradient still reach the first layers? Compares them with the last ones while a run trains."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from torch import Tensor

from guard.types import Floats

VANISHED = 1e-5
"""Gradient of the first third of the layers over that of the last third, per element: less has vanished.

A tenth of the pre-flight's limit: here the size of the weights, which differs by layer, does not count."""
_DEEP = 6
"""With fewer matrices a third is a single one, whose gradient shows little about depth."""
_EVERY = 10
"""Steps between two checks: a gradient vanishes over hundreds of steps, and the check costs microseconds."""


class VanishingByDepth:
    """Reports once that the gradient of the first layers has vanished, when that has lasted.

    A layer's gradient is the root mean square over its elements, so that its size does not count; of a group
    of layers the largest counts, and one whose gradient is exactly zero does not take part: it is frozen, or
    dead, which is reported separately. Norms and biases do not count either: where a normalization follows,
    the gradient of a bias is rounding noise.

    Args:
        parameters: in the order of the network.
        lasting_steps: how long it must have lasted.
    """

    def __init__(self, parameters: Sequence[Tensor], lasting_steps: int) -> None:
        self._matrices = np.array([i for i, p in enumerate(parameters) if p.ndim >= 2], dtype=np.int64)
        sizes = [parameters[i].numel() for i in self._matrices]
        self._scales = np.array([1 / math.sqrt(size) if size else 0.0 for size in sizes])
        self._third = len(sizes) // 3 if len(sizes) >= _DEEP else 0
        self._lasting = max(1, lasting_steps // _EVERY)
        self.rows = 0
        """Checks in a row that found it vanished."""

    def observe(self, attempt: int, norms: Floats) -> tuple[int, float] | None:
        """The parameter at which the gradient has vanished on its way back, and early over late gradient."""
        if not self._third or attempt % _EVERY:
            return None
        sizes = norms[self._matrices] * self._scales
        late = sizes[-self._third :].max()
        early = sizes[: self._third].max()
        if not (0.0 < early < VANISHED * late < math.inf):  # NaN too
            self.rows = 0
            return None
        self.rows += 1
        if self.rows != self._lasting:
            return None
        vanished = np.flatnonzero((sizes > 0.0) & (sizes < VANISHED * late))
        return int(self._matrices[vanished[-1]]), float(early / late)
