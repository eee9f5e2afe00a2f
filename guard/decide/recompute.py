"""A suspect batch computed again: what differs the second time was the hardware, not the data.

Healthy hardware repeats a computation (to the bit on the CPU); a flipped bit in an activation or a gradient
does not happen twice. The second result is then the good one, and the run continues with it.

A different result is a hardware fault only if the computation repeats itself: it must have drawn the same
random numbers as the first time, and give the second result again when it is done a third time.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from guard.act import rng
from guard.hooks import ForwardHook
from guard.types import Agreed, Floats

Closure = Callable[[], Tensor | None]
WORTH_RECOMPUTING = ("suspect", "spike", "nonfinite")
"""Drift and vanishing are not of one batch: computing it again shows nothing."""
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
        model: once ``arm`` was called, the first forward of an attempt that records gradients marks that
            place. Forwards of an evaluation or of a copy of the model do not.
    """

    def __init__(self, model: nn.Module) -> None:
        self.model = model
        self._devices = rng.devices_of(model)
        self._handle: Any = None
        self._generators: dict[str, Any] | None = None
        self._drawn: dict[str, Any] | None = None
        self._forwards = self._forwards_before = 0
        """In training mode, which may change buffers: of this computation, of the first one."""

    @property
    def ready(self) -> bool:
        return self._generators is not None

    def arm(self) -> None:
        """A new attempt starts: its first forward will be recorded."""
        self._generators = self._drawn = None
        self._forwards = 0
        if self._handle is None:
            self._handle = self.model.register_forward_pre_hook(ForwardHook(self._record))

    @property
    def generators(self) -> dict[str, Any] | None:
        """Where the first forward of this attempt started to draw; None where that is unknown."""
        return self._generators

    def resume(self, generators: dict[str, Any] | None) -> None:
        """The next ``reset`` restores these: what ``generators`` was in an attempt before."""
        self._generators = generators

    @contextmanager
    def aside(self) -> Iterator[None]:
        """What runs inside is no forward of the attempt."""
        kept = self._generators, self._drawn, self._forwards
        try:
            yield
        finally:
            self._generators, self._drawn, self._forwards = kept

    def _record(self, module: nn.Module) -> None:
        if module is not self.model:  # a copy of the model, whose hooks are these too
            return
        self._forwards += module.training
        if self._generators is None and torch.is_grad_enabled():
            self._generators = rng.capture(self._devices, quick=True)

    def computed(self) -> None:
        """The batch has been computed for the first time: keeps where it left the generators."""
        self._drawn, self._forwards_before = rng.capture(self._devices), self._forwards

    def reset(self) -> None:
        """The next forward draws what the first one of this attempt drew."""
        self._forwards = 0
        if self._generators is not None:
            rng.restore(self._generators)

    def repeated(self) -> bool:
        """Whether the batch, computed again, drew the random numbers of the first time, by as many forwards.

        It did not where the closure draws before its first forward, or where the model ran in training mode
        between two steps. The generators continue from where the first computation left them.
        """
        if self._drawn is None:
            return False
        same = self._forwards == self._forwards_before and rng.equal(rng.capture(self._devices), self._drawn)
        rng.restore(self._drawn)
        return same


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
