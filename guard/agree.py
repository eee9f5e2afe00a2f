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

from guard.errors import GuardError, RankDivergence

LOSS, STOP, LOCAL_NORM, GRAD_NORM, DIGEST = range(5)
WIDTH = 5
TOLERANCE = 1e-3
# Renamed in torch 2.13.
_all_gather = getattr(dist, "all_gather_single", None) or dist.all_gather_into_tensor


@dataclass(frozen=True, slots=True)
class Agreed:
    """What all ranks know of one step; arrays have one entry a rank.

    ``losses`` is each rank's mean loss over its micro-batches, ``local_norms`` each rank's gradient norm
    before the all-reduce one step ago (NaN where it was not taken).
    """

    loss: float
    """Mean over ranks; not finite if any rank's is not."""
    losses: NDArray[np.float64]
    local_norms: NDArray[np.float64]
    stop: bool


class Agreement:
    """Gathers one row a rank and micro-batch, and checks that the ranks' decision states are equal."""

    def __init__(self, group: dist.ProcessGroup | None, device: torch.device) -> None:
        distributed = dist.is_available() and dist.is_initialized()
        self._group = group
        self.world_size = dist.get_world_size(group) if distributed else 1
        self.rank = dist.get_rank(group) if distributed else 0
        self._device = device
        self._slots: list[_Slot] = []
        self._works: list[dist.Work | None] = []

    def send(self, loss: Tensor, *, stop: bool, local_norm: float, grad_norm: float, digest: int) -> None:
        """Starts the gather of this rank's row; returns at once. Norms are those of the attempt before."""
        slot = self._slot(len(self._works))
        slot.row.copy_(torch.tensor([0.0, float(stop), local_norm, grad_norm, float(digest)]))
        slot.row[LOSS] = loss.detach()
        self._works.append(self._gather(slot, async_op=True))

    def receive(self) -> Agreed:
        """Waits for the rows of every ``send`` since the last call.

        Raises:
            RankDivergence: on all ranks, if their decision states or their last global norms differ.
            GuardError: if nothing was sent.
        """
        if not self._works:
            raise GuardError(
                "step was called without backward: call guard.backward(loss), not loss.backward()"
            )
        rows = [_wait(slot, work) for slot, work in zip(self._slots, self._works, strict=False)]
        self._works = []
        last = rows[-1]
        if self.world_size > 1:
            _check_digests(last[:, DIGEST])
            _check_norms(last[:, GRAD_NORM])
        with np.errstate(invalid="ignore"):
            losses = last[:, LOSS] if len(rows) == 1 else np.mean([row[:, LOSS] for row in rows], axis=0)
            return Agreed(float(losses.mean()), losses, last[:, LOCAL_NORM], bool(last[:, STOP].any()))

    def collect(self, local_norm: float, *, digest: int) -> NDArray[np.float64]:
        """The local norm of each rank, at once. Collective: every rank calls it on the same verdict.

        The row is as wide as that of ``send``: a rank that came to another verdict, because its memory was
        damaged after the all-reduce, and has gone on to its next ``send``, shows by its digest.
        """
        slot = self._slot(0)
        slot.row.copy_(torch.tensor([0.0, 0.0, local_norm, 0.0, float(digest)]))
        rows = _wait(slot, self._gather(slot, async_op=False))
        _check_digests(rows[:, DIGEST])
        return rows[:, LOCAL_NORM]

    def _slot(self, index: int) -> _Slot:
        """The memory of the gather ``index`` of a step: made once, since a step has a few micro-batches."""
        while index >= len(self._slots):
            self._slots.append(_Slot(self.world_size, self._device))
        return self._slots[index]

    def _gather(self, slot: _Slot, *, async_op: bool) -> dist.Work | None:
        if self.world_size == 1:
            slot.rows[0] = slot.row
            return None
        return _all_gather(slot.gathered, slot.row, group=self._group, async_op=async_op)


class _Slot:
    """The memory of one gather: this rank's row and everybody's.

    It outlives the gather. A worker thread of gloo that held the last reference to a tensor would need the
    interpreter to free it, and a thread that asks for that while the interpreter ends aborts the process.
    """

    def __init__(self, world_size: int, device: torch.device) -> None:
        self.row = torch.empty(WIDTH, device=device)
        self.gathered = torch.empty(world_size * WIDTH, device=device)
        self.rows = self.gathered.view(world_size, WIDTH)


def digest(*parts: object) -> int:
    """24 bits that a float32 holds exactly; equal on two ranks when ``parts`` print alike."""
    return zlib.crc32(repr(parts).encode()) & 0xFFFFFF


def _check_digests(digests: NDArray[np.float64]) -> None:
    if (digests == digests[0]).all():
        return
    odd = _minority(digests[:, None] == digests)
    if odd:
        raise RankDivergence(
            f"the decision state of {odd} differs from that of the other ranks: "
            "resume from a checkpoint, and check that all ranks load the same one"
        )


def _check_norms(norms: NDArray[np.float64]) -> None:
    if (norms == norms[0]).all():
        return
    odd = _minority(np.isclose(norms[:, None], norms, rtol=TOLERANCE, atol=0.0, equal_nan=True))
    if odd:
        seen = ", ".join(f"{norm:.6g}" for norm in norms)
        raise RankDivergence(
            f"the gradients of {odd} differ from those of the other ranks after the all-reduce (global norms "
            f"{seen}): wrap the model in DistributedDataParallel, and synchronize the last micro-batch"
        )


def _minority(equal: NDArray[np.bool_]) -> str:
    """The ranks that differ from what most ranks hold; in a tie, from what rank 0 holds."""
    common = equal[equal.sum(axis=1).argmax()]
    odd = np.flatnonzero(~common).tolist()
    return f"rank {', '.join(map(str, odd))}" if odd else ""


def _wait(slot: _Slot, work: dist.Work | None) -> NDArray[np.float64]:
    if work is not None:
        work.wait()
    return slot.rows.cpu().numpy().astype(np.float64)
