"""Weights, moments and buffers are the same on all ranks, to the bit, or are copied from a healthy rank.

A bit that flips in one rank's memory spreads to all of them with the next all-reduce, and no gradient shows
it. Each rank adds up the bits of every tensor on its device, and one all-reduce compares the sums: a single
flipped bit changes its sum, whatever the tensor's size.
"""

from __future__ import annotations

import math
import time
import zlib
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from statistics import fmean
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.optim import Optimizer

from guard.act.buffers import Buffers
from guard.act.fingerprints import bits, fingerprints, is_plain
from guard.act.stores import is_zero
from guard.observe.observer import Observer
from guard.observe.watched import parameter_names
from guard.types import Damage, Floats

Sums = NDArray[np.int64]
_CONSTANT = 3
"""Checks after which a tensor that never changed is known to be the same on all ranks."""
_COUNTER = 1 << 12
"""An integer of its own (``num_batches_tracked``) that differs by less may count what one rank did."""
_SLOW_AT_FIRST, _SURE_STEPS = 4.0, 10
"""The first few steps of a run are up to so many times as slow as those that follow."""
FEWEST_STEPS, MOST_STEPS, SHARE = 50, 1000, 0.005
"""Between two checks whose cost decides how often they are made: this share of a step."""


class Replicas:
    """Compares what each rank holds a whole copy of, and copies what was damaged from a healthy rank.

    A tensor counts once it has changed and was still equal on all ranks, or was equal in three checks:
    BatchNorm's statistics are each rank's own, and so are weights that are rounded at random. In a buffer
    only a single element counts, since a module may write to it on one rank by design. For sharded tensors
    see ``guard.act.shard_copies``.

    Args:
        tensors: what to compare, by name, in the same order on all ranks.
        every_steps: steps from one check to the next; there are three checks at the start too. None: as many
            as keep their cost at half a percent of a step, measured on the slowest rank.
        device: where collectives run.
    """

    def __init__(
        self,
        tensors: Callable[[], Mapping[str, Tensor]],
        every_steps: int | None,
        group: dist.ProcessGroup | None,
        device: torch.device | None = None,
    ) -> None:
        self._read, self._group = tensors, group
        self.every = self._wanted = every_steps or FEWEST_STEPS
        self._by_cost, self._ended = every_steps is None, (0.0, 0)
        self._seconds: deque[float] = deque(maxlen=5)
        self._ranks = dist.get_world_size(group) if dist.is_available() and dist.is_initialized() else 1
        self._known: dict[str, tuple[int | None, int]] = {}
        """The last sum of each tensor, and in how many checks it was equal; 0: it is each rank's own."""
        self._checked_at, self._checks = -1, 0
        self._device = device or torch.device("cpu")
        self.verified: int | None = None
        """The last step after which all ranks were equal."""

    def due(self, step: int) -> bool:
        """Whether the state after ``step`` steps is to be compared. The same on all ranks."""
        if self._ranks == 1 or step == self._checked_at:
            return False
        return self._checks < _CONSTANT or step % self.every == 0

    def returned(self, step: int, *, verified: bool) -> None:
        """The state is again that of after ``step`` steps; ``verified``: when all ranks were equal."""
        constant = {n: before if checks <= _CONSTANT else None for n, (before, checks) in self._known.items()}
        self._known = {name: (constant[name], checks) for name, (_, checks) in self._known.items()}
        self._checked_at = -1
        if verified or (self.verified is not None and self.verified > step):
            self.verified = step

    @torch.no_grad()
    def check(self, step: int) -> list[Damage]:
        """The tensors that were damaged on a rank. Collective: every rank calls it after the same steps."""
        started = time.perf_counter()
        try:
            return self._check(step)
        finally:
            self._learn_cost(step, started)

    def _learn_cost(self, step: int, started: float) -> None:
        """How often this rank would check; the ranks agree on it in the next check."""
        (ended, before), now = self._ended, time.perf_counter()
        self._ended = now, step
        self._seconds.append(now - started)
        if self._by_cost and ended and step > before:
            slow = _SLOW_AT_FIRST if step - before < _SURE_STEPS else 1.0
            self._wanted = affordable(slow * fmean(self._seconds), (started - ended) / (step - before))

    def _check(self, step: int) -> list[Damage]:
        named = self._read()
        self._checked_at, self._checks = step, self._checks + 1
        if not self._same_names(list(named)):
            return []
        if not named:  # of each tensor a rank has a part only
            self.verified = step
            return []
        names, sums = list(named), fingerprints(list(named.values()))
        unequal = self._unequal(sums)
        rows = self._gather(sums) if unequal.any() else sums.cpu().numpy()[None]
        found = self.compare(names, rows, named)
        if not found:
            self.verified = step
        return found

    def compare(
        self, names: Sequence[str], sums: Sums, tensors: Mapping[str, Tensor] | None = None
    ) -> list[Damage]:
        """As ``check``, where the tensors are given; ``sums``: of each on each rank, [ranks, tensors]."""
        unequal = (sums != sums[0]).any(0)
        faults = []
        for i, name in enumerate(names):
            before, checks = self._known.get(name, (None, 1))
            if not unequal[i]:
                self._learn(name, int(sums[0, i]))
            elif name not in self._known or not checks:
                self._known[name] = before, 0
            elif self._is_damage(name, sums[:, i], before, checks, (tensors or {}).get(name)):
                odd = odd_ranks(sums[:, i], before)
                source = next((r for r in range(len(sums)) if r not in odd), 0)
                faults.append(Damage(name, tuple(odd), source))
            else:
                self._known[name] = before, 0
        return faults

    @torch.no_grad()
    def heal(self, damage: Sequence[Damage]) -> None:
        """Copies each tensor from a healthy rank to all. Collective, in the order of ``damage``."""
        named = self._read()
        for tensor, _, source in damage:
            self._broadcast(named[tensor], source)

    def flipped_gradient(self, gradients: Mapping[str, Tensor]) -> list[Damage]:
        """The reduced gradient in which one bit differs on one rank, if that is all; collective.

        Ranks whose gradients were never the same have many that differ, and not by a single bit.
        """
        if not self._same_names(list(gradients)) or not gradients:
            return []
        names, sums = list(gradients), fingerprints(list(gradients.values()))
        unequal = np.flatnonzero(self._unequal(sums))
        if len(unequal) != 1:
            return []
        column = self._gather(sums)[:, unequal[0]]
        odd = odd_ranks(column, None)
        if len(odd) > 1 or not one_bit(column):
            return []
        return [Damage(names[unequal[0]], tuple(odd), next(r for r in range(len(column)) if r not in odd))]

    def copy_gradient(self, gradient: Tensor, source: int) -> None:
        """From the rank ``source`` to all. Collective."""
        self._broadcast(gradient, source)

    def farther(self, kept: Mapping[str, Tensor], now: Mapping[str, Tensor]) -> list[int]:
        """The rank whose tensors were farther from what they are now, the steps having been repeated; empty
        where that does not tell. Collective."""
        named = [n for n in kept if n in now]
        apart = sum((kept[n].double() - now[n].double()).abs().sum().nan_to_num(1e300, 1e300) for n in named)
        mine = torch.as_tensor(apart, dtype=torch.float64).reshape(1).to(self._device)
        rows = [torch.empty_like(mine) for _ in range(self._ranks)]
        # All-gather of one number a rank, after an incident; every rank reaches it in the same step.
        dist.all_gather(rows, mine, group=self._group)
        distances = torch.cat(rows).cpu().numpy()
        far = np.flatnonzero(distances == distances.max()).tolist()
        return far if len(far) == 1 else []

    def _learn(self, name: str, value: int) -> None:
        before, checks = self._known.get(name, (None, 0))
        if name in self._known and not checks:
            return
        changed = checks > _CONSTANT or (before is not None and before != value)
        self._known[name] = value, _CONSTANT + 1 if changed else min(checks + 1, _CONSTANT)

    def _is_damage(
        self, name: str, sums: Sums, before: int | None, checks: int, tensor: Tensor | None
    ) -> bool:
        buffer = name.startswith("buffer ")
        undecided = checks > _CONSTANT and (len(sums) == 2 or not buffer)
        if checks < _CONSTANT or not (undecided or len(odd_ranks(sums, before)) == 1):
            return False
        if not buffer or tensor is None:
            return True
        if tensor.numel() > 1:
            return self._lone_element(tensor)
        return one_bit(sums, least=1 if tensor.is_floating_point() else _COUNTER)

    def _lone_element(self, tensor: Tensor) -> bool:
        """Whether the ranks differ in one element alone. Collective."""
        first = self._from(tensor, 0)
        differ = (bits(first) != bits(tensor.detach()).to(first.device)).sum().reshape(1)
        # All-reduce of the maximum of one number, for a buffer that differs for the first time.
        dist.all_reduce(differ, op=dist.ReduceOp.MAX, group=self._group)
        return int(differ) <= 1

    def _unequal(self, sums: Tensor) -> NDArray[np.bool_]:
        # All-reduce of the maximum of 16 bytes a tensor: its sum, and the complement of it, whose maximum is
        # that of the least sum. Every rank reaches it, in the same step.
        sums = sums.to(self._device)
        both = torch.cat([sums, ~sums])
        dist.all_reduce(both, op=dist.ReduceOp.MAX, group=self._group)
        most, least = both.chunk(2)
        return (most != ~least).cpu().numpy()

    def _same_names(self, names: list[str]) -> bool:
        """Whether all ranks hold tensors of the same names."""
        mine = zlib.crc32("\n".join(names).encode())
        both = torch.tensor([mine, -mine, self._wanted]).to(self._device)
        # All-reduce of the maximum of three numbers, before one whose size is that of the list.
        dist.all_reduce(both, op=dist.ReduceOp.MAX, group=self._group)
        most, least, self.every = both.tolist()
        return bool(most == -least)

    def _gather(self, sums: Tensor) -> Sums:
        sums = sums.to(self._device)
        rows = [torch.empty_like(sums) for _ in range(self._ranks)]
        # All-gather of 8 bytes a tensor and rank, where a sum differed: that is known to every rank.
        dist.all_gather(rows, sums, group=self._group)
        return torch.stack(rows).cpu().numpy()

    def _broadcast(self, tensor: Tensor, source: int) -> None:
        part = self._from(tensor, source)
        with torch.no_grad(), torch.inference_mode(tensor.is_inference()):
            tensor.detach().copy_(part)

    def _from(self, tensor: Tensor, source: int) -> Tensor:
        """A copy of that of another rank, where collectives run."""
        part = tensor.detach().contiguous().clone().to(self._device)
        ranks = dist.get_process_group_ranks(self._group)
        # Of a tensor that differs between the ranks, from one that every rank knows.
        dist.broadcast(part.view(-1).view(torch.uint8), ranks[source], group=self._group)
        return part


def affordable(check_s: float, step_s: float) -> int:
    """Steps from one check to the next, for which checks cost at most ``SHARE`` of a step."""
    steps = FEWEST_STEPS * math.ceil(check_s / max(SHARE * step_s * FEWEST_STEPS, 1e-9))
    return min(max(FEWEST_STEPS, steps), MOST_STEPS)


def replicated(model: nn.Module, optimizer: Optimizer, observer: Observer) -> Callable[[], dict[str, Tensor]]:
    """Reads what each rank holds a whole copy of: all weights, moments and buffers, by name."""
    buffers = Buffers(model)

    def read() -> dict[str, Tensor]:
        divided = set() if observer.shards is None else observer.shards.divided
        trained = dict(zip(observer.names, observer.parameters, strict=True))
        own = {id(observer.parameters[i]) for i in divided}
        found: dict[str, Any] = {}
        for name, parameter in {**parameter_names(model), **trained}.items():
            if id(parameter) in own:
                continue
            found[f"weight {name}"] = parameter
            state = {} if is_zero(optimizer) else optimizer.state.get(parameter, {})
            found |= {f"moment {name} {key}": state[key] for key in sorted(state)}
        buffers.rescan()
        found |= {f"buffer {n}": b for n, b in zip(buffers.names, buffers.read(), strict=True)}
        return {n: t for n, t in found.items() if is_plain(t)}

    return read


def whole_gradients(observer: Observer) -> dict[str, Tensor]:
    """The gradients of replicated parameters, by name."""
    divided = set() if observer.shards is None else observer.shards.divided
    named = enumerate(zip(observer.names, observer.parameters, strict=True))
    found = {f"gradient {name}": p.grad for i, (name, p) in named if i not in divided and p.grad is not None}
    return {name: gradient for name, gradient in found.items() if is_plain(gradient)}


def one_bit(sums: Sums, *, least: int = 1) -> bool:
    """Whether there are two sums that differ by a power of two, as those of a flipped bit do; they wrap."""
    values = [int(value) for value in np.unique(sums)]
    apart = min(values[-1] - values[0], (1 << 64) - values[-1] + values[0])
    return len(values) == 2 and apart >= least and apart & (apart - 1) == 0


def odd_ranks(sums: Sums | Floats, before: int | None) -> list[int]:
    """The ranks without the sum of most, or in a tie without that of before; empty where neither is known."""
    values, counts = np.unique(sums, return_counts=True)
    right = values[counts.argmax()] if 2 * counts.max() > len(sums) else before
    return np.flatnonzero(sums != right).tolist() if right is not None and right in values else []
