"""All ranks hold the same numbers, so that the same deterministic code decides alike on each of them.

Every rank issues exactly one gather a step, of one small row, once its backward is over and before anything
is applied: it has the rank's loss and the norm of the reduced gradient. When the agreed verdict needs
evidence, one more: since the verdict is a function of agreed numbers only, all ranks reach it.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor

from guard.agree.divergence import TOLERANCE, Describe, check_digests, check_norms
from guard.agree.rank_failure import raises_rank_lost
from guard.agree.settings import digest
from guard.errors import GuardError
from guard.observe.norms import widest
from guard.types import Agreed, Floats

LOSS, REQUESTS, LOCAL_NORM, SQUARE, JUMP, DIGEST, MICRO_BATCHES, DROPPED = range(8)
"""The columns of a row; ``SQUARE`` is the squared norm of the reduced gradient."""
WIDTH = 8
STOP, CHECKPOINT, CHANGED = 1, 2, 4
"""Bits of the column ``REQUESTS``."""
_NO_JUMP = -1.0
"""Marks a row of a model without floating-point buffers: a jump is never negative."""
# Renamed in torch 2.13.
_all_gather = getattr(dist, "all_gather_single", None) or dist.all_gather_into_tensor

Value = float | Tensor
"""A number on the host or, 0-dim, on the device."""


class Agreement:
    """Gathers one row a rank and step, and checks that decision states and gradients are equal.

    Args:
        device: where the gradients are.
        describe: the settings and the state that decide, as text by name.
        deferred: the host reads no tensor.
    """

    def __init__(
        self,
        group: dist.ProcessGroup | None,
        device: torch.device,
        describe: Describe = dict,
        *,
        deferred: bool = False,
    ) -> None:
        self._distributed = dist.is_available() and dist.is_initialized()
        self._group = group
        self.world_size = dist.get_world_size(group) if self._distributed else 1
        self.rank = dist.get_rank(group) if self._distributed else 0
        self._device = device
        self._describe = describe
        self._reads = device.type == "cpu" and not deferred
        self._losses: list[Value] = []
        self._jump: Value | None = None
        self._requests = 0
        self._failed = False
        # Of a deferred step the rows are read after the gather of evidence: each has a memory of its own.
        self._rows, self._evidence, self._norms = (
            _Slot(width, self.world_size, device) for width in (WIDTH, WIDTH, 1)
        )
        self._exchanged: dict[int, _Slot] = {}
        self.forgotten = 0
        """Micro-batches that were sent and do not count, since their gradients were discarded."""

    @raises_rank_lost
    def check_names(self, names: Sequence[str]) -> None:
        """Collective, once, when the guard is made: every rank makes one.

        Raises:
            RankDivergence: on all ranks, where they train parameters of other names: stages of a pipeline.
        """
        if self.world_size > 1:
            self._norms.write([float(digest(*names))])
            self._all_gather(self._norms)
            digests = self._norms.rows[:, 0].cpu().numpy().copy()
            check_digests(digests, lambda: {f"parameter {name}": "present" for name in names}, self._group)

    @property
    def pending(self) -> int:
        """Micro-batches since the last ``gather``."""
        return len(self._losses)

    def add(
        self,
        loss: Tensor,
        *,
        stop: bool = False,
        checkpoint: bool = False,
    ) -> None:
        """Adds a micro-batch to this rank's row; the host waits for no device.

        Raises:
            GuardError: the process group was made after the guard.
        """
        self._check_group()
        self._failed = False
        self._losses.append(self._kept(loss))
        self._requests |= STOP * stop | CHECKPOINT * checkpoint

    def add_state(self, *, changed: int, buffer_jump: Value | None) -> None:
        """Adds what the loop did to the weights before it, and its forward to the buffers."""
        self._jump = None if buffer_jump is None else self._kept(buffer_jump)
        self._requests |= CHANGED * changed

    def forget(self, *, all_of_them: bool = False) -> None:
        """The last micro-batch, or every one since the last ``gather``, counts for nothing.

        What is counted must be the same on each rank.
        """
        lost = len(self._losses) if all_of_them else min(1, len(self._losses))
        if lost:
            del self._losses[-lost:]
        self.forgotten += lost
        self._failed = not all_of_them and not self._losses

    def check_pending(self) -> None:
        """Raises GuardError where there is no micro-batch to gather."""
        failed, self._failed = self._failed, False
        if not self._losses:
            raise GuardError(
                "guard.step was called after a backward that failed: leave the step out for that batch"
                if failed
                else "step was called without backward: call guard.backward(loss), not loss.backward()"
            )

    def clear(self) -> None:
        """Drops the row of this step, on all ranks."""
        self._losses, self._jump, self._requests = [], None, 0

    @property
    def alone(self) -> bool:
        """Whether there is no other rank, and no device to wait for."""
        return self._reads and self.world_size == 1

    def own(self, *, local_norm: Value) -> Agreed:
        """What ``read`` returns of ``gather`` where the process is ``alone``."""
        row = self._row(local_norm, 0.0, 0)
        return _single([float(value) for value in row])

    def gather(self, *, local_norm: Value, square: Value, digest: int) -> Tensor:
        """The rows of all ranks, [ranks, WIDTH], on the device; valid until the next call.

        float64, on MPS float32.

        Args:
            local_norm: of the attempt before.
            square: the squared norm of the reduced gradient; NaN where it is not known yet.
            digest: of what decides.
        """
        row = self._row(local_norm, square, digest)
        self._rows.write([float(value) for value in row] if self._reads else row)
        self._all_gather(self._rows)
        return self._rows.rows

    def _row(self, local_norm: Value, square: Value, digest: int) -> list[Value]:
        """This rank's, by column; the next one begins."""
        loss, dropped = _mean(self._losses)
        jump = _NO_JUMP if self._jump is None else self._jump
        micro_batches = float(len(self._losses))
        row = [loss, float(self._requests), local_norm, square, jump, float(digest), micro_batches, dropped]
        self.clear()
        return row

    def read(self, rows: Floats, layers: Describe) -> tuple[Agreed, float | None]:
        """What the rows of ``gather`` say, once they are on the host.

        Args:
            rows: a copy of them.
            layers: the norm of each parameter, as text; asked for where the ranks differ.

        Returns:
            What is agreed, and the gradient's norm to decide by where those of the ranks differ by rounding;
            None where they are equal.

        Raises:
            RankDivergence: on all ranks, if their decision states differ, or their norms by more.
        """
        if len(rows) == 1:
            return _single(rows[0].tolist()), None
        check_digests(rows[:, DIGEST], self._describe, self._group)
        norm = self._check_norms(rows[:, SQUARE], layers)
        losses, jump = rows[:, LOSS], float(rows[:, JUMP].max())  # NaN if any is
        with np.errstate(invalid="ignore"):
            loss = float(losses.mean())
        agreed = Agreed(
            loss=loss,
            losses=losses,
            local_norms=rows[:, LOCAL_NORM],
            **_requests(int(np.bitwise_or.reduce(rows[:, REQUESTS].astype(np.int64)))),
            buffer_jump=None if jump == _NO_JUMP else jump,
            micro_batches=int(rows[:, MICRO_BATCHES].sum()),
            dropped_micro_batches=int(rows[:, DROPPED].sum()),
        )
        return agreed, norm

    def agree_norm(self, norm: float, layers: Describe) -> float | None:
        """The same for a norm that is known only after ``read``: that of sharded gradients. Collective."""
        self._norms.write([norm**2])
        self._all_gather(self._norms)
        return self._check_norms(self._norms.rows[:, 0].cpu().numpy().copy(), layers)

    def collect(self, local_norm: float, *, digest: int, flag: bool = False) -> tuple[Floats, bool]:
        """The local norm of each rank, and whether any rank set ``flag``, at once.

        Collective: every rank calls it on the same verdict.

        The row is as wide as that of ``gather``: a rank that reached another verdict, because its memory was
        damaged after the all-reduce, is already at its next ``gather``; its digest then shows that.
        """
        self._evidence.write([0.0, float(flag), local_norm, 0.0, _NO_JUMP, float(digest), 0.0, 0.0])
        self._all_gather(self._evidence)
        rows = self._evidence.rows.cpu().numpy().copy()
        check_digests(rows[:, DIGEST], self._describe, self._group)
        return rows[:, LOCAL_NORM], bool(rows[:, REQUESTS].any())

    def exchange(self, values: Sequence[float]) -> Floats:
        """The row of each rank, [ranks, columns]. Collective: every rank calls it on the same verdict."""
        width = len(values)
        slot = self._exchanged.get(width) or _Slot(width, self.world_size, self._device)
        self._exchanged[width] = slot
        slot.write(values)
        self._all_gather(slot)
        return slot.rows.cpu().numpy().copy()

    def _check_norms(self, squares: Floats, layers: Describe) -> float | None:
        with np.errstate(invalid="ignore"):
            norms = np.sqrt(squares)
        if (norms == norms[0]).all():
            return None
        check_norms(norms, layers, self._group)
        return None if math.isnan(norms[0]) else float(norms[0])

    def _all_gather(self, slot: _Slot) -> None:
        if self.world_size > 1:
            # All-gather of one row a rank. Every rank reaches it: ``gather`` runs once for each attempt and
            # each time its batch is computed again, ``collect`` on an agreed verdict. The slowest rank is
            # waited for by the host on gloo, by the stream on NCCL.
            _all_gather(slot.gathered, slot.row, group=self._group)

    def _kept(self, number: Value) -> Value:
        """A copy, since the user may write to it before the step."""
        if not isinstance(number, Tensor):
            return number
        return number.item() if self._reads and number.is_cpu else number.detach().clone()

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

    def __init__(self, width: int, world_size: int, device: torch.device) -> None:
        dtype = widest(device)
        self.row = torch.empty(width, device=device, dtype=dtype)
        self.gathered = torch.empty(world_size * width, device=device, dtype=dtype)
        self.rows = self.gathered.view(world_size, width)
        if world_size == 1:
            self.row = self.rows[0]
        self._host = self.row.numpy() if device.type == "cpu" else None

    def write(self, values: Sequence[Value]) -> None:
        """Fills this rank's row; the host does not wait for a device."""
        if self._host is not None and not any(isinstance(value, Tensor) for value in values):
            self._host[:] = values
            return
        on_host = [0.0 if isinstance(value, Tensor) else value for value in values]
        pinned = torch.tensor(on_host, pin_memory=self.row.is_cuda, dtype=self.row.dtype)
        self.row.copy_(pinned, non_blocking=True)
        for i, value in enumerate(values):
            if isinstance(value, Tensor):
                self.row[i] = value


def same_norms(rows: Tensor) -> Tensor:
    """Whether the norms in the rows of ``gather`` are the same but for rounding: 0-dim bool, not read."""
    squares = rows[:, SQUARE]
    return ((squares - squares[0]).abs() <= 2 * TOLERANCE * squares[0]).all()


def _wide(value: Tensor) -> Tensor:
    return value.to(widest(value.device))


def _requests(bits: int) -> dict[str, Any]:
    return {"stop": bool(bits & STOP), "checkpoint": bool(bits & CHECKPOINT), "changed": bits // CHANGED}


def _single(row: list[float]) -> Agreed:
    """The row of one process: the common case, without arithmetic on arrays."""
    jump = row[JUMP]
    return Agreed(
        loss=row[LOSS],
        losses=np.array([row[LOSS]]),
        local_norms=np.array([row[LOCAL_NORM]]),
        **_requests(int(row[REQUESTS])),
        buffer_jump=None if jump == _NO_JUMP else jump,
        micro_batches=int(row[MICRO_BATCHES]),
        dropped_micro_batches=int(row[DROPPED]),
    )


def _mean(losses: list[Value]) -> tuple[Value, Value]:
    """The mean over the finite losses, NaN where there is none; and how many were dropped. One is kept."""
    if len(losses) == 1:
        return losses[0], 0.0
    if all(isinstance(loss, float) for loss in losses):
        finite = [loss for loss in losses if math.isfinite(loss)]
        return sum(finite) / len(finite) if finite else math.nan, float(len(losses) - len(finite))
    stacked = torch.stack([_wide(torch.as_tensor(loss)).reshape(()) for loss in losses])
    kept = torch.isfinite(stacked)
    return torch.where(kept, stacked, 0.0).sum() / kept.sum(), (~kept).sum()
