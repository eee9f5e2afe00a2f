"""Many small tensors of one dtype and device, copied and compared in a few calls.

On the CPU they are numpy's: torch starts its threads for as few as 32,768 elements, and waits for them.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import torch
from torch import Tensor

_NUMPY = (torch.float32, torch.float64, torch.int64, torch.int32, torch.bool, torch.uint8)
_REFRESH = 64
"""Copies after which the norms that jumps are measured in are taken again, and after 1, 2, 4, 8, ...: running
statistics change fast at first, and slowly after 64 steps."""
_FLOOR = 1e-3
"""The least size of an element in a buffer's norm: a running mean starts at zero."""


class Pack:
    """A copy of the tensors in one piece of memory.

    Args:
        live: the tensors; they are read again at each ``save`` and ``jump``.
        watched: whether their jumps count.
    """

    def __init__(self, live: list[Tensor], *, watched: bool = True) -> None:
        self._live = [tensor.detach() for tensor in live]
        self._sizes = [tensor.numel() for tensor in live]
        self._views = all(tensor.is_contiguous() for tensor in live)
        self._flat = [tensor.reshape(-1) for tensor in self._live]
        self._kept = torch.cat(self._flat)
        self._arrays: list[Any] | None = None
        if self._views and self._kept.is_cpu and self._kept.dtype in _NUMPY:
            self._arrays = [tensor.numpy() for tensor in self._flat]
        self.copies: list[Tensor] = [
            piece.view(tensor.shape)
            for piece, tensor in zip(self._kept.split(self._sizes), self._live, strict=True)
        ]
        """The copies, shaped as the tensors; valid until the next ``save``."""
        watched = watched and self._kept.is_floating_point()
        self._watched = watched and bool(torch.isfinite(self._kept).all())
        owners = torch.repeat_interleave(torch.arange(len(live)), torch.tensor(self._sizes))
        self._owners = owners.to(self._kept.device)
        self._norms: Tensor | None = None
        self._units: Tensor | None = None
        self._saves = 0

    def save(self) -> None:
        if self._arrays is not None:
            np.concatenate(self._arrays, out=self._kept.numpy())
        else:
            self._gather(out=self._kept)
        self._count()

    def save_unless(self, skip: Tensor) -> None:
        """Copies the tensors, or restores them from the copy where ``skip`` (0-dim, on the device) is 1."""
        self._kept.copy_(torch.where(skip.bool(), self._kept, self._gather()))
        torch._foreach_copy_(self._live, self.copies)
        self._count()

    def _count(self) -> None:
        self._saves += 1
        if self._saves % _REFRESH == 0 or self._saves & (self._saves - 1) == 0:
            self._norms = None

    def jump(self) -> Tensor | float | None:
        """The L2 norm of what changed since ``save``, each tensor in units of its norm; a float on the host.

        None where the tensors are not floating-point, or held an infinity from the start (as a mask does).
        """
        if not self._watched:
            return None
        if self._norms is None:
            self._norms, self._units = self._measure_norms(), None
        if self._units is None:
            self._units = self._norms.reciprocal()[self._owners]
        if self._arrays is not None:
            change = np.concatenate(self._arrays)
            with np.errstate(invalid="ignore", over="ignore"):
                change -= self._kept.numpy()
                change *= self._units.numpy()
                return float(np.dot(change, change)) ** 0.5
        moved = self._gather().sub_(self._kept).float().mul_(self._units)
        return torch.dot(moved, moved).sqrt()

    def state_dict(self) -> dict[str, Any]:
        """The norms that jumps are measured in, as a list; the tensors are saved with the model."""
        return {"norms": None if self._norms is None else self._norms.tolist(), "saves": self._saves}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        norms, self._units, self._saves = state["norms"], None, int(state["saves"])
        self._norms = None if norms is None else torch.tensor(norms, device=self._kept.device)

    def _gather(self, out: Tensor | None = None) -> Tensor:
        return torch.cat(self._flat if self._views else [t.reshape(-1) for t in self._live], out=out)

    def _measure_norms(self) -> Tensor:
        """The norm of each tensor, never zero."""
        norms = zip(torch._foreach_norm(self.copies), self._sizes, strict=True)
        return torch.stack([norm.float() + _FLOOR * math.sqrt(size) for norm, size in norms])
