"""Weights that no optimizer steps: held in snapshots only where something else changes them.

A momentum teacher inside the model is changed by the loop. The frozen base of an adapter never is, and may be
larger than all that is trained. A strided sample of each tensor, compared from snapshot to snapshot, shows
which it is.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from guard.observe.shards import local

SAMPLE = 64
"""Elements of each tensor that are compared: an average that is updated changes nearly all of them."""


class FrozenWeights:
    """Decides at each snapshot which of the weights that are not trained it must hold.

    Until a second snapshot has shown that they stay as they are, they are held where they need no more memory
    than the trained ones.
    """

    def __init__(self) -> None:
        self._samples: dict[int, Tensor] = {}
        self._changing: set[int] = set()

    @torch.no_grad()
    def to_hold(self, frozen: Sequence[Tensor], trained: Sequence[Tensor]) -> list[Tensor]:
        """Those of ``frozen`` that change, or might; call it once a snapshot."""
        samples = {id(tensor): _sample(tensor) for tensor in frozen}
        known = [i for i in samples if i in self._samples and i not in self._changing]
        differ = _differ([samples[i] for i in known], [self._samples[i] for i in known])
        self._changing.update(i for i, other in zip(known, differ, strict=True) if other)
        first = not self._samples and _bytes(frozen) <= _bytes(trained)
        self._samples = samples
        return [tensor for tensor in frozen if first or id(tensor) in self._changing]


def _sample(tensor: Tensor) -> Tensor:
    part = local(tensor.detach())
    flat = part.view(-1) if part.is_contiguous() else part.reshape(-1)
    return flat[:: max(1, -(-flat.numel() // SAMPLE))].clone()


def _differ(now: Sequence[Tensor], before: Sequence[Tensor]) -> list[bool]:
    """Which samples changed: the host waits once, however many there are."""
    flags = [(a != b).any() for a, b in zip(now, before, strict=True)]
    return torch.stack([flag.to(flags[0].device) for flag in flags]).tolist() if flags else []


def _bytes(tensors: Sequence[Tensor]) -> int:
    return sum(part.numel() * part.element_size() for part in map(local, tensors))
