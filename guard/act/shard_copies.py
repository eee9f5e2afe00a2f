"""Shards that several ranks hold alike, as under HSDP: compared and copied as whole tensors are."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch.optim import Optimizer

from guard.act.fingerprints import is_plain
from guard.act.replicas import Replicas
from guard.observe.observer import Observer
from guard.observe.shards import is_distributed, local
from guard.types import Damage


class ShardCopies:
    """Compares each shard with those of the ranks that hold the same one; what one group finds, all know.

    A shard is named with its ranks: ``weight 0.weight of ranks 0, 2``.

    Args:
        group: the ranks that train together, of which rank numbers are meant.
    """

    def __init__(
        self,
        optimizer: Optimizer,
        observer: Observer,
        group: dist.ProcessGroup | None,
        device: torch.device,
    ) -> None:
        self._optimizer, self._observer = optimizer, observer
        self._group, self._device = group, device
        self._inner: dict[tuple[int, ...], Replicas] = {}

    def read(self) -> dict[str, Tensor]:
        """This rank's part of all that others hold too, by name."""
        return {name: tensor for found in self._by_copies().values() for name, tensor in found.items()}

    def check(self, step: int) -> list[Damage]:
        """As ``Replicas.check``, the same on every rank. Collective."""
        mine = [damage for ranks in self._groups() for damage in self._check_group(ranks, step)]
        count = torch.tensor([len(mine)], device=self._device)
        # All-reduce of the maximum of one number, after each check of the shards.
        dist.all_reduce(count, op=dist.ReduceOp.MAX, group=self._group)
        if not int(count):
            return []
        rows: list[Any] = [None] * dist.get_world_size(self._group)
        # All-gather of what was found, after an incident, which every rank knows of.
        dist.all_gather_object(rows, [tuple(damage) for damage in mine], group=self._group)
        return [Damage(*row) for row in sorted({row for found in rows for row in found})]

    def heal(self, damage: Damage) -> bool:
        """Copies a shard from a healthy rank to those that hold it. Whether it is one of these shards.

        Collective over the ranks that hold it; the others may call it too.
        """
        for ranks, replicas in self._inner.items():
            if damage.tensor.endswith(_of(self._numbers(ranks))):
                source = self._numbers(ranks).index(damage.source)
                replicas.heal([damage._replace(source=source)])
        return " of ranks " in damage.tensor

    def returned(self, step: int) -> None:
        """The state is again that of after ``step`` steps."""
        for replicas in self._inner.values():
            replicas.returned(step, verified=False)

    def _check_group(self, ranks: tuple[int, ...], step: int) -> list[Damage]:
        numbers = self._numbers(ranks)
        return [
            Damage(name, tuple(numbers[rank] for rank in odd), numbers[source])
            for name, odd, source in self._inner[ranks].check(step)
        ]

    def _groups(self) -> list[tuple[int, ...]]:
        """The ranks of each group of this rank, in the order of the parameters."""
        for parameter in self._observer.parameters:
            group = _copies(parameter)
            if group is None:
                continue
            ranks = tuple(dist.get_process_group_ranks(group))
            if ranks not in self._inner:
                self._inner[ranks] = Replicas(partial(self._of_group, ranks), 1, group, self._device)
        return list(self._inner)

    def _of_group(self, ranks: tuple[int, ...]) -> Mapping[str, Tensor]:
        return self._by_copies().get(ranks, {})

    def _by_copies(self) -> dict[tuple[int, ...], dict[str, Tensor]]:
        found: dict[tuple[int, ...], dict[str, Tensor]] = {}
        for name, parameter in zip(self._observer.names, self._observer.parameters, strict=True):
            group = _copies(parameter)
            if group is None:
                continue
            ranks = tuple(dist.get_process_group_ranks(group))
            state = self._optimizer.state.get(parameter, {})
            tensors = {f"weight {name}": parameter} | {
                f"moment {name} {key}": state[key] for key in sorted(state)
            }
            own = found.setdefault(ranks, {})
            for key, tensor in tensors.items():
                part = local(tensor.detach()) if isinstance(tensor, Tensor) else tensor
                if is_plain(part):
                    own[key + _of(self._numbers(ranks))] = part
        return found

    def _numbers(self, ranks: Sequence[int]) -> list[int]:
        known = dist.get_process_group_ranks(self._group)
        return [known.index(rank) for rank in ranks]


def _of(numbers: Sequence[int]) -> str:
    return f" of ranks {', '.join(map(str, numbers))}"


def has_copies(parameter: Any) -> bool:
    """Whether other ranks hold the same shard."""
    return _copies(parameter) is not None


def _copies(parameter: Any) -> dist.ProcessGroup | None:
    """The ranks that hold the same shard, along the first dimension of a mesh that does not divide it."""
    if not is_distributed(parameter):
        return None
    mesh, placements = parameter.device_mesh, parameter.placements
    alike = [d for d, placement in enumerate(placements) if placement.is_replicate() and mesh.size(d) > 1]
    divided = any(not placement.is_replicate() for placement in placements)
    return mesh.get_group(alike[0]) if alike and divided else None
