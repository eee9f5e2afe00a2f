"""Healthy batches computed twice: hardware that computes wrongly now and then gives another gradient."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor, nn

from guard.act.buffers import Buffers
from guard.act.fingerprints import fingerprints, is_plain
from guard.observe.gradients import elements
from guard.observe.observer import Observer
from guard.types import Floats

ATTEMPTS = 100
"""One more forward and backward in so many attempts."""


@dataclass(frozen=True, slots=True)
class Kept:
    """The result of one computation on this rank: gradients, then buffers; copies, and the bits of each."""

    names: list[str]
    tensors: list[Tensor]
    sums: Tensor


class Repeats:
    """Keeps what a batch gave, to compare it to the bit with what the same batch gives again.

    Args:
        every: attempts from one such batch to the next; ``auto`` is ``ATTEMPTS``.
    """

    def __init__(self, model: nn.Module, observer: Observer, every: Literal["auto", "off"] | int) -> None:
        self._observer, self._buffers = observer, Buffers(model)
        self._every = every if isinstance(every, int) else ATTEMPTS * (every == "auto")

    def due(self, attempt: int) -> bool:
        """Whether the batch of this attempt is to be computed twice. The same on all ranks."""
        return bool(self._every) and attempt % self._every == 0

    @torch.no_grad()
    def keep(self) -> Kept:
        """Copies of the present gradients and buffers."""
        named = self._present()
        copies = [tensor.detach().clone() for tensor in named.values()]
        return Kept(list(named), copies, fingerprints(copies))

    @torch.no_grad()
    def first_apart(self, kept: Kept) -> int:
        """The first tensor of ``kept`` that is not what it is now; -1 where all are the same."""
        now = self._present()
        if list(now) != kept.names:
            return 0
        apart = (fingerprints(list(now.values())) != kept.sums).nonzero()
        return int(apart[0]) if len(apart) else -1

    @torch.no_grad()
    def stop(self, kept: Kept) -> None:
        """The batch does not repeat itself: goes back to its first result, and asks for no other."""
        self._every, now = 0, self._present()
        for name, tensor in zip(kept.names, kept.tensors, strict=True):
            if name in now:
                now[name].copy_(tensor)

    def _present(self) -> dict[str, Tensor]:
        observer = self._observer
        named: dict[str, Any] = {
            f"gradient of {name}": elements(p.grad)
            for name, p in zip(observer.names, observer.parameters, strict=True)
            if p.grad is not None
        }
        named |= {f"buffer {n}": b for n, b in zip(self._buffers.names, self._buffers.read(), strict=True)}
        return {name: tensor for name, tensor in named.items() if is_plain(tensor)}


def lone_rank(apart: Floats) -> int:
    """The only rank on which a tensor was not the same, -1 where there is none or another.

    Args:
        apart: as of ``first_apart``, [ranks].
    """
    found = np.flatnonzero(apart >= 0)
    return int(found[0]) if len(found) == 1 else -1
