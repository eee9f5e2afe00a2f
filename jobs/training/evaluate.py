"""Metrics on the held-out data: every rank evaluates its share, and all stop together when requested."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
import torch.distributed as dist

from guard.act import rng

if TYPE_CHECKING:
    from jobs.training.run import Run


class EvaluationStopped(BaseException):
    """Ends a workload's ``evaluate`` from inside; the user's ``except Exception`` must not catch it."""


def evaluate(run: Run) -> dict[str, float] | None:
    """The workload's sums over all ranks; None, on all of them, if a stop was requested meanwhile.

    The random number generators are restored: how often a run evaluates changes nothing else.
    """
    if run.world.size > 1:
        for buffer in run.model.evaluated.buffers():
            # Broadcast from rank 0, whose BatchNorm statistics are saved; every rank evaluates after the same
            # step and has the same buffers.
            dist.broadcast(buffer, src=0)
    generators = rng.capture()
    try:
        sums = _own_sums(run)
    finally:
        rng.restore(generators)
    # Max; every rank gets here, finished or stopped: one that was stopped stops the evaluation on all.
    if _reduced(run, [0.0 if sums is not None else 1.0], dist.ReduceOp.MAX)[0] or sums is None:
        return None
    # Sum; every rank gets here with the same keys, since the line before returned on all ranks or on none.
    return dict(zip(sums, _reduced(run, list(sums.values()), dist.ReduceOp.SUM), strict=True))


def _own_sums(run: Run) -> dict[str, float] | None:
    model, world = run.model.evaluated, run.world

    def stop_when_requested(*_: Any) -> None:
        run.watchdog.beat()
        if run.stop.requested():
            raise EvaluationStopped

    handle = model.register_forward_pre_hook(stop_when_requested)
    try:
        return run.data.workload.evaluate(model, world.rank, world.size, world.device)
    except EvaluationStopped:
        return None
    finally:
        handle.remove()


def _reduced(run: Run, values: list[float], operation: dist.ReduceOp.RedOpType) -> list[float]:
    if run.world.size == 1:
        return values
    tensor = torch.tensor(values, dtype=torch.float64, device=run.world.device)
    dist.all_reduce(tensor, op=operation)  # the callers name the operation; every rank waits for the slowest
    return tensor.tolist()
