"""The copy for which the training loop waits: this rank's part of the state, in separate memory.

What is equal on all data-parallel ranks (parameters, the optimizer's moments) is divided among them, so that
each copies and writes an equal part; of a sharded tensor (FSDP2) each writes its shard. All else comes from
rank 0: buffers differ between ranks, and DistributedDataParallel broadcasts those of rank 0. Random number
generators are saved by each rank.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from guard.act import rng
from guard.act.snapshot import Stateful
from guard.observe.shards import is_distributed, local
from jobs.checkpoints.shards import like_sharded
from jobs.checkpoints.state import Tensors, take_apart


@dataclass(frozen=True, slots=True)
class Staged:
    """One rank's part of a checkpoint: its tensors, copied, and all else as JSON."""

    tensors: Tensors
    parts: dict[str, Any]
    generators: Any


class CheckpointStager:
    """Copies states into memory that is reused (pinned where they come from a GPU)."""

    def __init__(self, parts: Mapping[str, Stateful], rank: int, world_size: int) -> None:
        self._parts = dict(parts)
        self._rank, self._world_size = rank, world_size
        self._memory: Tensors = {}

    def take(self) -> Staged:
        """Copies the present state. The copy is valid until the next call.

        Raises:
            UnsupportedState: a part's state cannot be stored.
        """
        tensors: Tensors = {}
        parts = {name: take_apart(part.state_dict(), name, tensors) for name, part in self._parts.items()}
        own: Tensors = {}
        generators = take_apart(rng.capture(), generators_name(self._rank), own)
        return Staged(self._copy({**self._own_part(tensors), **own}), parts, generators)

    def _own_part(self, tensors: Tensors) -> Tensors:
        replicated = self._parameters()
        sharded = {name for name, tensor in tensors.items() if is_distributed(tensor)}
        shared = {
            name: tensor.nbytes
            for name, tensor in tensors.items()
            if name not in sharded
            and (name in replicated or isinstance(self._parts[name.partition(".")[0]], Optimizer))
        }
        owners = balance(shared, self._world_size)
        return {n: t for n, t in tensors.items() if n in sharded or owners.get(n, 0) == self._rank}

    def _parameters(self) -> set[str]:
        return {
            f"{name}.{parameter}"
            for name, part in self._parts.items()
            if isinstance(part, nn.Module)
            for parameter, _ in part.named_parameters(remove_duplicate=False)
        }

    @torch.no_grad()
    def _copy(self, tensors: Tensors) -> Tensors:
        mine = {name: local(tensor) for name, tensor in tensors.items()}
        self._memory = {name: self._slot(name, tensor) for name, tensor in mine.items()}
        for name, tensor in mine.items():
            self._memory[name].copy_(tensor, non_blocking=tensor.is_cuda)
        if any(tensor.is_cuda for tensor in mine.values()):
            torch.cuda.synchronize()
        return {name: like_sharded(self._memory[name], tensor) for name, tensor in tensors.items()}

    def _slot(self, name: str, tensor: Tensor) -> Tensor:
        kept = self._memory.get(name)
        if kept is not None and kept.shape == tensor.shape and kept.dtype == tensor.dtype:
            return kept
        return torch.empty(tensor.shape, dtype=tensor.dtype, pin_memory=tensor.is_cuda)


def balance(sizes: Mapping[str, int], world_size: int) -> dict[str, int]:
    """Which rank writes which tensor: the largest first, each to the rank with the least so far.

    Every rank computes the same, without communication.
    """
    loads = [0] * world_size
    owners = {}
    for name in sorted(sizes, key=lambda name: (-sizes[name], name)):
        rank = loads.index(min(loads))
        owners[name] = rank
        loads[rank] += sizes[name]
    return owners


def generators_name(rank: int) -> str:
    """The prefix of the tensors of a rank's generators."""
    return f"generators.{rank}"
