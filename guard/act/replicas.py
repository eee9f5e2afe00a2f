"""Every k steps: weights, moments and buffers are the same on all ranks, to the bit.

A bit that flips in one rank's memory spreads to all of them with the next all-reduce, and no gradient shows
it. Each rank adds up the bits of every tensor on its device, and one small gather compares the sums: a single
flipped bit changes its sum, whatever the tensor's size.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.optim import Optimizer

from guard.act.buffers import Buffers
from guard.act.stores import is_zero
from guard.errors import RankDivergence
from guard.observe.observer import Observer

_CONSTANT = 3
"""Checks after which a tensor that never changed is known to be the same on all ranks."""
_BITS = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}
"""What elements of so many bytes are added up as."""


class Replicas:
    """Compares what each rank holds a whole copy of.

    A moment or a buffer counts only once it has changed and was still equal on all ranks: BatchNorm's
    statistics are each rank's own. Sharded tensors have no copy to be compared with.
    """

    def __init__(
        self,
        model: nn.Module,
        optimizer: Optimizer,
        observer: Observer,
        every_steps: int,
        group: dist.ProcessGroup | None,
    ) -> None:
        self._optimizer, self._observer, self._group = optimizer, observer, group
        self._buffers = Buffers(model)
        self._every = every_steps
        self._known: dict[str, tuple[int, int]] = {}
        """The last sum of each tensor, and in how many checks it was equal; 0: it is each rank's own."""

    @torch.no_grad()
    def check_when_due(self, step: int) -> None:
        """Collective in every k-th step: all ranks call it after the same steps.

        Raises:
            RankDivergence: on all ranks; names the tensor and, of three ranks or more, the rank.
        """
        if step % self._every == 0 and dist.is_initialized() and dist.get_world_size(self._group) > 1:
            named = self._tensors()
            self.compare(list(named), self._gather(fingerprints(list(named.values()))))

    def compare(self, names: Sequence[str], sums: NDArray[np.int64]) -> None:
        """Raises as ``check_when_due`` does; ``sums``: of each tensor on each rank, [ranks, tensors]."""
        unequal = (sums != sums[0]).any(0)
        faults = []
        for i, name in enumerate(names):
            before, checks = self._known.get(name, (int(sums[0, i]), 1))
            if name not in self._known and not unequal[i]:
                self._known[name] = before, checks
            elif not unequal[i] and checks:
                changed = before != sums[0, i]
                self._known[name] = int(sums[0, i]), _CONSTANT if changed else checks + 1
            elif unequal[i] and (name.startswith("weight ") or checks >= _CONSTANT):
                faults.append((name, odd_ranks(sums[:, i], before)))
            elif unequal[i]:
                self._known[name] = before, 0
        if faults:
            raise RankDivergence(_words(faults))

    def _tensors(self) -> dict[str, Tensor]:
        """By name, in the same order on all ranks; those that are sharded or empty are left out."""
        own = set() if self._observer.shards is None else self._observer.shards.divided
        named = zip(self._observer.names, self._observer.parameters, strict=True)
        found: dict[str, Any] = {}
        for name, parameter in (pair for i, pair in enumerate(named) if i not in own):
            found[f"weight {name}"] = parameter
            if not is_zero(self._optimizer):
                state = self._optimizer.state.get(parameter, {})
                found |= {f"moment {name} {key}": state[key] for key in sorted(state)}
        found |= {f"buffer {n}": b for n, b in zip(self._buffers.names, self._buffers.read(), strict=True)}
        return {n: t for n, t in found.items() if type(t) in (Tensor, nn.Parameter) and not t.is_sparse}

    def _gather(self, sums: Tensor) -> NDArray[np.int64]:
        device = self._observer.parameters[0].device
        mine = sums.to(device)
        rows = [torch.empty_like(mine) for _ in range(dist.get_world_size(self._group))]
        # All-gather of 8 bytes a tensor and rank, in every k-th step; every rank reaches it.
        dist.all_gather(rows, mine, group=self._group)
        return torch.stack(rows).cpu().numpy()


def fingerprints(tensors: Sequence[Tensor]) -> Tensor:
    """The bits of each tensor as one wrapping int64 sum, [tensors], on the device of the first."""
    sums = [_bits(tensor.detach()).sum(dtype=torch.int64) for tensor in tensors]
    return torch.stack([value.to(sums[0].device) for value in sums])


def _bits(tensor: Tensor) -> Tensor:
    real = torch.view_as_real(tensor) if tensor.is_complex() else tensor
    return real.contiguous().reshape(-1).view(_BITS[real.element_size()])


def odd_ranks(sums: NDArray[np.int64], before: int) -> list[int]:
    """The ranks without the sum of most, or in a tie without that of before; empty where neither is known."""
    values, counts = np.unique(sums, return_counts=True)
    right = values[counts.argmax()] if 2 * counts.max() > len(sums) else before
    return np.flatnonzero(sums != right).tolist() if right in values else []


def _words(faults: list[tuple[str, list[int]]]) -> str:
    name, ranks = faults[0]
    where = f"on rank {', '.join(map(str, ranks))}" if ranks else "between the ranks, none of which has most"
    more = f", and {len(faults) - 1} more tensors" if len(faults) > 1 else ""
    return (
        f"the {name} differs {where}{more}, though all ranks must have it alike: memory was damaged. Replace "
        "the device, and resume from the last good checkpoint"
    )
