"""Metrics on the held-out data: every rank takes its share, and all give up together when asked to stop."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any

import ray
import torch
import torch.distributed as dist
from ray.actor import ActorHandle

from guard.act import rng
from jobs.placement.preemption import PreemptionWatch

if TYPE_CHECKING:
    from jobs.training.setup import Run

ASK_EVERY_S = 0.5


class EvaluationStopped(BaseException):
    """Ends a workload's ``evaluate`` from inside; no ``except Exception`` of the user's is to catch it."""


class StopWatcher:
    """Knows on any rank, without waiting, whether the job is to stop: by the hub, or for its node's sake."""

    def __init__(self, hub: ActorHandle, job: str, rank: int) -> None:
        self._hub, self._job, self._rank = hub, job, rank
        self._reply: Any = None
        self._next = 0.0
        self.asked = False
        """Whether the hub has said so, as far as this rank knows."""
        self._drain = PreemptionWatch(self._tell)
        self._drain.start()

    @property
    def draining(self) -> bool:
        """Whether this rank's node is about to be taken away."""
        return self._drain.draining

    def requested(self) -> bool:
        """Whether the node goes, or the hub has said so by now; asks it again every half second."""
        try:
            return self.draining or self._answered()
        except Exception:  # noqa: BLE001 - a hub that is away must never end a training
            self._reply = None
            return False

    def _tell(self) -> None:
        text = f"the node of rank {self._rank} is about to be taken away: saving the state"
        self._hub.note.remote(self._job, "warning", text)

    def _answered(self) -> bool:
        if self._reply is None and time.monotonic() >= self._next:
            self._next = time.monotonic() + ASK_EVERY_S
            self._reply = self._hub.stop_requested.remote(self._job)
        if self._reply is None or not ray.wait([self._reply], timeout=0)[0]:
            return False
        reply, self._reply = self._reply, None
        self.asked = bool(ray.get(reply, timeout=0))
        return self.asked


def evaluate(run: Run) -> dict[str, float] | None:
    """The workload's sums over all ranks; None, on all of them, if somebody asked to stop meanwhile.

    The random number generators are left as they were: how often a run evaluates changes nothing else.
    """
    if run.world_size > 1:
        for buffer in run.evaluated_model.buffers():
            dist.broadcast(buffer, src=0)  # BatchNorm's statistics are each rank's own; rank 0's are saved
    generators = rng.capture()
    try:
        sums = _own_sums(run)
    finally:
        rng.restore(generators)
    # A rank that was told to stop did not finish its share; the maximum, which every rank takes part in,
    # says so to those that were not told.
    if _reduced(run, [0.0 if sums is not None else 1.0], dist.ReduceOp.MAX)[0] or sums is None:
        return None
    # Sum; every rank comes here after the same steps, with the same keys.
    return dict(zip(sums, _reduced(run, list(sums.values()), dist.ReduceOp.SUM), strict=True))


def _own_sums(run: Run) -> dict[str, float] | None:
    def give_up(*_: Any) -> None:
        run.pulse.beat()
        if run.stop.requested():
            raise EvaluationStopped

    handle = run.evaluated_model.register_forward_pre_hook(give_up)
    try:
        return run.workload.evaluate(run.evaluated_model, run.rank, run.world_size, run.device)
    except EvaluationStopped:
        return None
    finally:
        handle.remove()


def _reduced(run: Run, values: list[float], operation: dist.ReduceOp.RedOpType) -> list[float]:
    if run.world_size == 1:
        return values
    added = torch.tensor(values, dtype=torch.float64, device=run.device)
    dist.all_reduce(added, op=operation)
    answer: list[float] = added.tolist()
    return answer
