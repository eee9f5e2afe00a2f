"""All ranks hold the same numbers, so that the same deterministic code decides alike on each of them.

One small float32 row a rank is gathered while backward runs. Every rank issues exactly one gather for each
``backward`` and, when the agreed verdict needs evidence, exactly one more: since the verdict is a function of
agreed numbers only, all ranks reach it.
"""

from __future__ import annotations

import math
import zlib

import numpy as np
import torch
import torch.distributed as dist
from numpy.typing import NDArray
from torch import Tensor

from guard.errors import GuardError, RankDivergence
from guard.types import Agreed, Floats

LOSS, REQUESTS, LOCAL_NORM, GRAD_NORM, JUMP, DIGEST = range(6)
WIDTH = 6
STOP, CHECKPOINT, CHANGED = 1, 2, 4
"""Bits of the column ``REQUESTS``."""
TOLERANCE = 1e-3
"""Relative: norms of the same gradients differ by rounding in float32, gradients not reduced by far more."""
_NO_JUMP = -1.0
"""Marks a row of a model without floating-point buffers: a jump is never negative."""
# Renamed in torch 2.13.
_all_gather = getattr(dist, "all_gather_single", None) or dist.all_gather_into_tensor


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

    def send(
        self,
        loss: Tensor,
        *,
        stop: bool,
        checkpoint: bool = False,
        changed: bool = False,
        local_norm: float | Tensor,
        grad_norm: float,
        digest: int,
        buffer_jump: Tensor | None = None,
    ) -> None:
        """Starts the gather of this rank's row; returns at once. Norms are those of the attempt before."""
        slot = self._slot(len(self._works))
        requests = float(STOP * stop + CHECKPOINT * checkpoint + CHANGED * changed)
        slot.write([0.0, requests, math.nan, grad_norm, _NO_JUMP, float(digest)])
        slot.row[LOSS] = loss.detach()
        slot.row[LOCAL_NORM] = local_norm
        if buffer_jump is not None:
            slot.row[JUMP] = buffer_jump
        self._works.append(self._gather(slot, async_op=True))

    def receive(self) -> Agreed:
        """Waits for the rows of every ``send`` since the last call, and reads them.

        Raises:
            RankDivergence: on all ranks, if their decision states or their last global norms differ.
            GuardError: if nothing was sent.
        """
        return self.read(self.receive_rows().cpu().numpy().astype(np.float64))

    def receive_rows(self) -> Tensor:
        """The rows of every ``send`` since the last call, [micro-batches, ranks, WIDTH], not read yet.

        Valid until the next ``send``.
        """
        works, self._works = self._works, []
        if not works:
            raise GuardError(
                "step was called without backward: call guard.backward(loss), not loss.backward()"
            )
        for work in works:
            if work is not None:
                # The all-gather of ``send``: for the slowest rank waits the host on gloo, the stream on NCCL.
                work.wait()
        rows = [slot.rows for slot in self._slots[: len(works)]]
        return rows[0].unsqueeze(0) if len(rows) == 1 else torch.stack(rows)

    def read(self, rows: Floats) -> Agreed:
        """The rows of ``receive_rows``, once they are on the host. Raises as ``receive`` does."""
        if rows.size == WIDTH:
            return _single(rows.ravel().tolist())
        last = rows[-1]
        if self.world_size > 1:
            _check_digests(last[:, DIGEST])
            _check_norms(last[:, GRAD_NORM])
        losses, dropped_micro_batches = _losses(rows[:, :, LOSS])
        with np.errstate(invalid="ignore"):
            jump = float(last[:, JUMP].max())  # NaN if any is
            return Agreed(
                loss=float(losses.mean()),
                losses=losses,
                local_norms=last[:, LOCAL_NORM],
                **_requests(np.bitwise_or.reduce(last[:, REQUESTS].astype(np.int64))),
                buffer_jump=None if jump == _NO_JUMP else jump,
                micro_batches=rows.shape[0] * rows.shape[1],
                dropped_micro_batches=dropped_micro_batches,
            )

    def collect(self, local_norm: float, *, digest: int) -> Floats:
        """The local norm of each rank, at once. Collective: every rank calls it on the same verdict.

        The row is as wide as that of ``send``: a rank that reached another verdict, because its memory was
        damaged after the all-reduce, is already at its next ``send``; its digest then shows that.
        """
        slot = self._slot(0)
        slot.write([0.0, 0.0, local_norm, 0.0, _NO_JUMP, float(digest)])
        self._gather(slot, async_op=False)  # the host waits for all ranks: rare, only on a bad step
        rows = slot.rows.cpu().numpy().astype(np.float64)
        _check_digests(rows[:, DIGEST])
        return rows[:, LOCAL_NORM]

    def _slot(self, index: int) -> _Slot:
        """The memory of gather number ``index`` of a step: allocated once, and reused by every step."""
        while index >= len(self._slots):
            self._slots.append(_Slot(self.world_size, self._device))
        return self._slots[index]

    def _gather(self, slot: _Slot, *, async_op: bool) -> dist.Work | None:
        if self.world_size == 1:
            return None
        # All-gather of one row a rank. Every rank reaches it: ``send`` runs once for each micro-batch,
        # ``collect`` on an agreed verdict. Asynchronous, no rank waits here; else each waits for the slowest.
        return _all_gather(slot.gathered, slot.row, group=self._group, async_op=async_op)


class _Slot:
    """The memory of one gather: this rank's row and those of all.

    It outlives the gather. A worker thread of gloo that held the last reference to a tensor would need the
    interpreter to free it, and a thread that asks for that while the interpreter ends aborts the process.
    """

    def __init__(self, world_size: int, device: torch.device) -> None:
        self.row = torch.empty(WIDTH, device=device)
        self.gathered = torch.empty(world_size * WIDTH, device=device)
        self.rows = self.gathered.view(world_size, WIDTH)
        if world_size == 1:
            self.row = self.rows[0]

    def write(self, values: list[float]) -> None:
        """Fills this rank's row; the host does not wait for a device."""
        on_host = torch.tensor(values, pin_memory=self.row.is_cuda)
        self.row.copy_(on_host, non_blocking=True)


def digest(*parts: object) -> int:
    """24 bits that a float32 holds exactly; equal on two ranks when ``parts`` print alike."""
    return zlib.crc32(repr(parts).encode()) & 0xFFFFFF


def _check_digests(digests: Floats) -> None:
    if (digests == digests[0]).all():
        return
    odd = _minority(digests[:, None] == digests)
    if odd:
        raise RankDivergence(
            f"the decision state of {odd} differs from that of the other ranks: "
            "resume from a checkpoint, and check that all ranks load the same one"
        )


def _check_norms(norms: Floats) -> None:
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


def _requests(bits: int) -> dict[str, bool]:
    return {"stop": bool(bits & STOP), "checkpoint": bool(bits & CHECKPOINT), "changed": bool(bits & CHANGED)}


def _single(row: list[float]) -> Agreed:
    """One micro-batch of one process: the common case, without arrays."""
    jump = row[JUMP]
    return Agreed(
        loss=row[LOSS],
        losses=np.array([row[LOSS]]),
        local_norms=np.array([row[LOCAL_NORM]]),
        **_requests(int(row[REQUESTS])),
        buffer_jump=None if jump == _NO_JUMP else jump,
    )


def _losses(losses: Floats) -> tuple[Floats, int]:
    """Each rank's mean over the finite of [micro-batches, ranks], and how many were dropped."""
    finite = np.isfinite(losses)
    if len(losses) == 1 or finite.all():
        with np.errstate(invalid="ignore"):
            return losses.mean(axis=0), 0
    counts = finite.sum(axis=0)
    with np.errstate(invalid="ignore", divide="ignore"):
        means = np.where(finite, losses, 0.0).sum(axis=0) / counts  # NaN for a rank with none left
    return means, int(losses.size - counts.sum())
