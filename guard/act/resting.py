"""Shards that no other rank holds are the same before a step as they were after the one before, to the bit.

There is no healthy copy of them but in a snapshot. After every k-th step each rank adds up the bits of what
it alone holds, and again before the next one: forward and backward change neither weights nor moments.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from statistics import fmean

import numpy as np
import torch
from torch import Tensor
from torch.optim import Optimizer

from guard.act.fingerprints import fingerprints, is_plain
from guard.act.replicas import MOST_STEPS, affordable, one_bit
from guard.act.shard_copies import has_copies
from guard.observe.observer import Observer
from guard.observe.shards import local
from guard.types import Damage, Floats

_NOTHING = torch.zeros(1)


class Resting:
    """Finds the one bit that flipped in a shard at rest; a loop that changes weights changes more.

    Args:
        every_steps: steps from one check to the next; None: as many as keep its cost at half a percent.
        exchange: the row of each rank, [ranks, columns]. Collective.
    """

    def __init__(
        self,
        optimizer: Optimizer,
        observer: Observer,
        every_steps: int | None,
        exchange: Callable[[Sequence[float]], Floats],
    ) -> None:
        self._optimizer, self._observer, self._exchange = optimizer, observer, exchange
        self._by_cost, self._every = every_steps is None, every_steps or MOST_STEPS
        self._noted: tuple[int, dict[str, Tensor], Tensor] | None = None
        self._seconds: deque[float] = deque(maxlen=5)
        self._started, self._spent = time.perf_counter(), 0.0

    def note(self, step: int) -> None:
        """Right after the step to ``step``, in which nothing was wrong."""
        if self._noted is None and (step <= 3 or step % self._every == 0):
            began = time.perf_counter()
            tensors = dict(self._tensors())
            self._noted = step, tensors, fingerprints(list(tensors.values()))
            self._started, self._spent = began, time.perf_counter() - began

    def changed(self) -> list[Damage]:
        """Before the next step: what is no longer as noted. Collective where ``note`` took something."""
        if self._noted is None:
            return []
        (_, tensors, before), self._noted = self._noted, None
        began = time.perf_counter()
        now = self._tensors()
        place = self._flipped(before, fingerprints(list(tensors.values()))) if _same(now, tensors) else -1
        ended = time.perf_counter()
        self._seconds.append(self._spent + ended - began)
        step_s = max(ended - self._started - self._seconds[-1], 1e-9)
        rows = self._exchange([float(place), float(affordable(fmean(self._seconds), step_s))])
        if self._by_cost:
            self._every = int(rows[:, 1].max())
        names = list(tensors)
        return [Damage(names[int(p)], (rank,), rank) for rank, p in enumerate(rows[:, 0]) if p >= 0]

    def forget(self) -> None:
        """The state is another one: nothing is known of it."""
        self._noted = None

    def _flipped(self, before: Tensor, now: Tensor) -> int:
        """The only tensor whose bits changed, if one bit did; else -1."""
        apart = (before != now).nonzero().flatten().tolist()
        if len(apart) != 1:
            return -1
        sums = torch.stack([before[apart[0]], now[apart[0]]]).cpu().numpy()
        return apart[0] if one_bit(np.asarray(sums)) else -1

    def _tensors(self) -> Mapping[str, Tensor]:
        observer, found = self._observer, dict[str, Tensor]()
        for i in sorted(observer.shards.divided if observer.shards is not None else ()):
            name, parameter = observer.names[i], observer.parameters[i]
            if has_copies(parameter):
                continue
            state = self._optimizer.state.get(parameter, {})
            found[f"weight {name}"] = local(parameter.detach())
            moments = {f"moment {name} {key}": state[key] for key in sorted(state)}
            found |= {key: local(m.detach()) for key, m in moments.items() if isinstance(m, Tensor)}
        # The same names on all ranks, of which one may have an empty part.
        return {name: tensor if is_plain(tensor) else _NOTHING for name, tensor in found.items()}


def _same(now: Mapping[str, Tensor], before: Mapping[str, Tensor]) -> bool:
    """Whether it is the same memory."""
    return list(now) == list(before) and all(now[n].data_ptr() == before[n].data_ptr() for n in now)
