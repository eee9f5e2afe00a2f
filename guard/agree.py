"""All ranks see the same numbers, so that the same deterministic code decides alike on each of them.

One small float32 row a rank is gathered while backward runs. Every rank issues exactly one gather for
each ``backward`` and, when the agreed verdict asks for evidence, exactly one more: since the verdict is a
function of agreed numbers only, all ranks reach it.
"""

from __future__ import annotations

import zlib
from dataclasses import dataclass

import numpy as np
import torch
import torch.distributed as dist
from numpy.typing import NDArray
from torch import Tensor

from guard.errors import RankDivergence

LOSS, STOP, LOCAL_NORM, DIGEST = range(4)
WIDTH = 4


@dataclass(frozen=True, slots=True)
class Agreed:
    """What all ranks know of one step; arrays have one entry a rank.

    ``losses`` is each rank's mean loss over its micro-batches, ``local_norms`` each rank's gradient norm
    before the all-reduce one step ago (NaN where it was not taken).
    """

    losses: NDArray[np.float64]
    local_norms: NDArray[np.float64]
    stop: bool

    @property
    def loss(self) -> float:
        """Mean over ranks; not finite if any rank's is not."""
        return float(self.losses.mean())


class Agreement:
    """Gathers one row a rank and micro-batch, and checks that the ranks' decision states are equal."""

    def __init__(self, group: dist.ProcessGroup | None, device: torch.device) -> None:
        distributed = dist.is_available() and dist.is_initialized()
        self._group = group
        self.world_size = dist.get_world_size(group) if distributed else 1
        self.rank = dist.get_rank(group) if distributed else 0
        self._device = device
        self._pending: list[tuple[Tensor, dist.Work | None]] = []

    def send(self, loss: Tensor, *, stop: bool, local_norm: float, digest: int) -> None:
        """Starts the gather of this rank's row; returns at once."""
        row = torch.tensor([0.0, float(stop), local_norm, float(digest)], device=self._device)
        row[LOSS] = loss.detach()
        self._pending.append(self._gather(row, async_op=True))

    def receive(self) -> Agreed:
        """Waits for the rows of every ``send`` since the last call.

        Raises:
            RankDivergence: on all ranks, if the decision states differ.
        """
        rows = np.stack([_wait(gathered, work) for gathered, work in self._pending])
        self._pending = []
        last = rows[-1]
        self._check_digests(last[:, DIGEST])
        return Agreed(rows[:, :, LOSS].mean(axis=0), last[:, LOCAL_NORM], bool(last[:, STOP].any()))

    def collect(self, value: float) -> NDArray[np.float64]:
        """One number from each rank, at once. Collective: every rank must call it in the same step."""
        row = torch.tensor([value], device=self._device)
        return _wait(*self._gather(row, async_op=False))[:, 0]

    def _gather(self, row: Tensor, *, async_op: bool) -> tuple[Tensor, dist.Work | None]:
        if self.world_size == 1:
            return row.unsqueeze(0), None
        gathered = torch.empty(self.world_size * row.numel(), device=self._device)
        work = dist.all_gather_into_tensor(gathered, row, group=self._group, async_op=async_op)
        return gathered.view(self.world_size, -1), work

    def _check_digests(self, digests: NDArray[np.float64]) -> None:
        if (digests == digests[0]).all():
            return
        values, counts = np.unique(digests, return_counts=True)
        common = values[counts.argmax()]
        odd = np.flatnonzero(digests != common).tolist()
        raise RankDivergence(
            f"the decision state of rank {', '.join(map(str, odd))} differs from that of the other ranks: "
            "resume from a checkpoint, and check that all ranks load the same one"
        )


def digest(*parts: object) -> int:
    """24 bits that a float32 holds exactly; equal on two ranks when ``parts`` print alike."""
    return zlib.crc32(repr(parts).encode()) & 0xFFFFFF


def _wait(gathered: Tensor, work: dist.Work | None) -> NDArray[np.float64]:
    if work is not None:
        work.wait()
    return gathered.cpu().numpy().astype(np.float64)
