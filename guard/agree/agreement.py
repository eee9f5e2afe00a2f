"""All ranks hold the same numbers, so that the same deterministic code decides alike on each of them.

One small float32 row a rank is gathered while backward runs. Every rank issues exactly one gather for each
``backward``, one of the gradient's norm before it decides and, when the agreed verdict needs evidence, one
more: since the verdict is a function of agreed numbers only, all ranks reach it.
"""

from __future__ import annotations

import math

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor

from guard.agree.divergence import Describe, check_digests, check_norms
from guard.errors import GuardError
from guard.types import Agreed, Floats

LOSS, REQUESTS, LOCAL_NORM, GRAD_NORM, JUMP, DIGEST = range(6)
WIDTH = 6
STOP, CHECKPOINT, CHANGED = 1, 2, 4
"""Bits of the column ``REQUESTS``."""
_NO_JUMP = -1.0
"""Marks a row of a model without floating-point buffers: a jump is never negative."""
# Renamed in torch 2.13.
_all_gather = getattr(dist, "all_gather_single", None) or dist.all_gather_into_tensor


class Agreement:
    """Gathers one row a rank and micro-batch, and checks that the ranks' decision states are equal."""

    def __init__(
        self, group: dist.ProcessGroup | None, device: torch.device, describe: Describe = dict
    ) -> None:
        self._distributed = dist.is_available() and dist.is_initialized()
        self._group = group
        self.world_size = dist.get_world_size(group) if self._distributed else 1
        self.rank = dist.get_rank(group) if self._distributed else 0
        self._device = device
        self._describe = describe
        self._slots: list[_Slot] = []
        self._works: list[dist.Work | None] = []
        self._counted: list[int] = []
        self._evidence = _Slot(WIDTH, self.world_size, device)
        self._squares = _Slot(1, self.world_size, device, torch.float64)
        self._norms: dist.Work | None = None
        self._squares_on_host: Tensor | None = None
        self.forgotten = 0
        """Micro-batches that were sent and do not count, since their gradients were discarded."""

    @property
    def pending(self) -> bool:
        """Whether a micro-batch has been sent since the last ``receive``."""
        return bool(self._counted)

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
        """Starts the gather of this rank's row; returns at once. Norms are those of the attempt before.

        Raises:
            GuardError: the process group was made after the guard.
        """
        self._check_group()
        slot = self._slot(len(self._works))
        self._counted.append(len(self._works))
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
        counted, self._counted = self._counted, []
        if not counted:
            raise GuardError(
                "guard.step was called after a backward that failed: leave the step out for that batch"
                if works
                else "step was called without backward: call guard.backward(loss), not loss.backward()"
            )
        for work in works:
            if work is not None:
                # The all-gather of ``send``: for the slowest rank waits the host on gloo, the stream on NCCL.
                work.wait()
        rows = [self._slots[i].rows for i in counted]
        return rows[0].unsqueeze(0) if len(rows) == 1 else torch.stack(rows)

    def read(self, rows: Floats) -> Agreed:
        """The rows of ``receive_rows``, once they are on the host. Raises as ``receive`` does."""
        if rows.size == WIDTH:
            return _single(rows.ravel().tolist())
        last = rows[-1]
        if self.world_size > 1:
            check_digests(last[:, DIGEST], self._describe, self._group)
            check_norms(last[:, GRAD_NORM], dict, self._group)
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

    def forget(self, *, all_of_them: bool = False) -> None:
        """The last micro-batch, or every one since the last ``receive``, counts for nothing.

        Its row is with the other ranks already: what is counted must be the same on each.
        """
        if self._counted:
            lost = len(self._counted) if all_of_them else 1
            del self._counted[-lost:]
            self.forgotten += lost
        if self.world_size == 1 and not self._counted:
            self._works = []

    def send_norm(self, square: Tensor) -> None:
        """Starts the gather of the squared norm of the reduced gradient, 0-dim; one for each observation."""
        self._squares.row.copy_(square)
        self._norms = self._gather(self._squares, async_op=True)

    def to_host(self, pieces: Tensor) -> Floats:
        """``pieces`` on the host, and from a GPU in the same read the norms that are being gathered."""
        if self._norms is None or not pieces.is_cuda:
            on_host: Floats = pieces.cpu().numpy()
            return on_host
        self._norms.wait()  # of ``send_norm``: the stream waits, not the host
        both = torch.cat([pieces, self._squares.gathered.to(pieces.device)]).cpu()
        self._squares_on_host = both[-self.world_size :]
        return both[: -self.world_size].numpy()

    def receive_norm(self, layers: Describe) -> float | None:
        """Checks that the gradient has the same norm on all ranks, before it is applied on any.

        Args:
            layers: the norm of each parameter, as text; asked for where the ranks differ.

        Returns:
            The norm to decide by where those of the ranks differ by rounding; None where they are equal.

        Raises:
            RankDivergence: on all ranks, if the norms differ by more.
        """
        if self._norms is None:
            return None
        work, self._norms = self._norms, None
        if self._squares_on_host is None:
            work.wait()  # of ``send_norm``: the host waits for the slowest rank
            self._squares_on_host = self._squares.gathered.cpu()
        norms, self._squares_on_host = self._squares_on_host.sqrt().numpy(), None
        if (norms == norms[0]).all():
            return None
        check_norms(norms, layers, self._group)
        return float(norms[0])

    def collect(self, local_norm: float, *, digest: int, flag: bool = False) -> tuple[Floats, bool]:
        """The local norm of each rank, and whether any rank set ``flag``, at once.

        Collective: every rank calls it on the same verdict.

        The row is as wide as that of ``send``: a rank that reached another verdict, because its memory was
        damaged after the all-reduce, is already at its next ``send``; its digest then shows that.
        """
        slot = self._evidence  # not one of ``send``: a deferred step reads its rows after this
        slot.write([0.0, float(flag), local_norm, 0.0, _NO_JUMP, float(digest)])
        self._gather(slot, async_op=False)  # the host waits for all ranks: rare, only on a bad step
        rows = slot.rows.cpu().numpy().astype(np.float64)
        check_digests(rows[:, DIGEST], self._describe, self._group)
        return rows[:, LOCAL_NORM], bool(rows[:, REQUESTS].any())

    def _slot(self, index: int) -> _Slot:
        """The memory of gather number ``index`` of a step: allocated once, and reused by every step."""
        while index >= len(self._slots):
            self._slots.append(_Slot(WIDTH, self.world_size, self._device))
        return self._slots[index]

    def _gather(self, slot: _Slot, *, async_op: bool) -> dist.Work | None:
        if self.world_size == 1:
            return None
        # All-gather of one row a rank. Every rank reaches it: ``send`` runs once for each micro-batch,
        # ``send_norm`` once for each observation, ``collect`` on an agreed verdict. Asynchronous, no rank
        # waits here; else each waits for the slowest.
        return _all_gather(slot.gathered, slot.row, group=self._group, async_op=async_op)

    def _check_group(self) -> None:
        if not self._distributed and dist.is_available() and dist.is_initialized():
            self._distributed = True
            if dist.get_world_size() > 1:
                raise GuardError(
                    "the guard was made before init_process_group, and knows of no other rank: make it after "
                    "that, or pass process_group= with the ranks that train together"
                )


class _Slot:
    """The memory of one gather: this rank's row and those of all.

    It outlives the gather. A worker thread of gloo that held the last reference to a tensor would need the
    interpreter to free it, and a thread that asks for that while the interpreter ends aborts the process.
    """

    def __init__(
        self, width: int, world_size: int, device: torch.device, dtype: torch.dtype = torch.float32
    ) -> None:
        self.row = torch.empty(width, device=device, dtype=dtype)
        self.gathered = torch.empty(world_size * width, device=device, dtype=dtype)
        self.rows = self.gathered.view(world_size, width)
        if world_size == 1:
            self.row = self.rows[0]

    def write(self, values: list[float]) -> None:
        """Fills this rank's row; the host does not wait for a device."""
        on_host = torch.tensor(values, pin_memory=self.row.is_cuda)
        self.row.copy_(on_host, non_blocking=True)


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
