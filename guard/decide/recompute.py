"""A suspect batch computed again: what differs the second time was the hardware, not the data.

Healthy hardware repeats a computation (to the bit on the CPU); a flipped bit in an activation or a gradient
does not happen twice. The second result is then the good one, and the run continues with it.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from guard.act import rng
from guard.hooks import ForwardHook
from guard.types import Agreed, Floats

Closure = Callable[[], Tensor | None]
_DEVICE_TOLERANCE = 1e-3
"""Relative: kernels on a GPU may add in another order, and a fault that changes less does no harm."""


@dataclass(frozen=True, slots=True)
class Result:
    """What one computation of a batch gave: each rank's loss and local norm, and the global norm."""

    agreed: Agreed
    local_norms: Floats
    grad_norm: float


class BatchReplayer:
    """Resets the random number generators to where a batch's forward started.

    Args:
        model: once ``arm`` was called, its first forward of an attempt records the generators.
    """

    def __init__(self, model: nn.Module) -> None:
        self._model = model
        self._handle: Any = None
        self._generators: dict[str, Any] | None = None

    @property
    def ready(self) -> bool:
        return self._generators is not None

    def arm(self) -> None:
        """A new attempt starts: its first forward will be recorded."""
        self._generators = None
        if self._handle is None:
            self._handle = self._model.register_forward_pre_hook(ForwardHook(self._record))

    def _record(self) -> None:
        if self._generators is None:
            self._generators = rng.capture()

    def reset(self) -> None:
        """The next forward draws what the first one of this attempt drew."""
        if self._generators is not None:
            rng.restore(self._generators)


def faulty_ranks(first: Result, second: Result, device: torch.device) -> list[int]:
    """The ranks whose two results differ; -1 for a rank that cannot be identified."""
    tolerance = 0.0 if device.type == "cpu" else _DEVICE_TOLERANCE

    def differ(a: Any, b: Any) -> Any:
        return ~np.isclose(a, b, rtol=tolerance, atol=0.0, equal_nan=True)

    ranks = differ(first.agreed.losses, second.agreed.losses)
    ranks = ranks | differ(first.local_norms, second.local_norms)
    found = [int(rank) for rank in np.flatnonzero(ranks)]
    if found or not (differ(first.grad_norm, second.grad_norm) or _buffers_differ(first, second)):
        return found
    return [0] if len(ranks) == 1 else [-1]


def _buffers_differ(first: Result, second: Result) -> bool:
    """Whether buffers were damaged before the first forward (they are reverted before the second)."""
    one, other = (math.nan if r.agreed.buffer_jump is None else r.agreed.buffer_jump for r in (first, second))
    return not np.isclose(one, other, rtol=_DEVICE_TOLERANCE, equal_nan=True)
