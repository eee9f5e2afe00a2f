"""Metrics on the held-out data: every rank evaluates its share, and all stop together when requested."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from itertools import count
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
import torch.distributed as dist

from guard.act import rng
from guard.agree.rank_failure import raises_rank_lost
from jobs.training.together import raise_together
from jobs.workloads.errors import WorkloadError
from jobs.workloads.losses import loss_of

if TYPE_CHECKING:
    from torch import nn

    from jobs.training.run import Run
    from jobs.workloads.base import Workload


class EvaluationStopped(BaseException):
    """Ends a workload's ``evaluate`` from inside; the user's ``except Exception`` must not catch it."""


class MidForward(BaseException):
    """An error, its cause, within a forward pass that needs all ranks."""


@raises_rank_lost
def evaluate(run: Run) -> dict[str, float] | None:
    """The workload's sums over all ranks; None, on all of them, if a stop was requested meanwhile.

    The random number generators are restored: how often a run evaluates changes nothing else. An error on one
    rank ends all of them: the others raise ``RankLost`` with its cause.
    """
    if run.world.size > 1:
        for buffer in run.model.evaluated.buffers():
            # Broadcast from rank 0, whose BatchNorm statistics are saved; every rank evaluates after the same
            # step and has the same buffers.
            dist.broadcast(buffer, src=0)
    generators, sums, failure = rng.capture(), None, None
    try:
        sums = _own_sums(run)
    except MidForward as error:
        raise error.__cause__ or error from None  # the others wait in that forward pass
    except Exception as error:  # noqa: BLE001 - the user's code raises anything, and the other ranks wait
        failure = error
    finally:
        rng.restore(generators)
    raise_together(failure, run.world.size)
    keys = _agreed_keys(run, None if sums is None else tuple(sums))
    if keys is None or sums is None:
        return None
    # Sum; every rank gets here with the same keys, since the lines before returned on all ranks or on none.
    return dict(zip(keys, _summed(run, _counted_once(run, [sums[key] for key in keys])), strict=True))


def _agreed_keys(run: Run, own: tuple[str, ...] | None) -> tuple[str, ...] | None:
    """The names of the sums; None, on all ranks, where one was stopped.

    Raises:
        WorkloadError: on all ranks, where ranks have different names: their sum would wait for ever.
    """
    seen: list[tuple[str, ...] | None] = [own] * run.world.size
    if run.world.size > 1:
        # All-gather; every rank gets here, finished or stopped: one that was stopped stops all.
        dist.all_gather_object(seen, own)
    if any(keys is None for keys in seen):
        return None
    for rank, keys in enumerate(seen):
        if set(keys or ()) != set(seen[0] or ()):
            raise WorkloadError(
                f"evaluate() must return the same keys on every rank: rank 0 has {_names(seen[0])}, "
                f"rank {rank} has {_names(keys)}"
            )
    return seen[0]


def _names(keys: tuple[str, ...] | None) -> str:
    return ", ".join(map(str, keys or ())) or "none"


def _counted_once(run: Run, values: list[float]) -> list[float]:
    """Zeros on all but the first of the ranks that evaluated the same samples."""
    return values if run.world.rank % run.world.tensor == 0 else [0.0] * len(values)


def _own_sums(run: Run) -> dict[str, float] | None:
    model, world = run.model.evaluated, run.world
    try:
        with _until_stopped(run, model):
            sums = run.data.workload.evaluate(model, world.data_rank, world.data_size, world.device)
    except EvaluationStopped:
        return None
    return _numbers("evaluate", "sums", sums)


def metrics_of(workload: Workload, sums: Mapping[str, float]) -> dict[str, float]:
    """The metrics that follow from the sums of all ranks.

    Raises:
        WorkloadError: they are no numbers by name.
    """
    return _numbers("metrics", "numbers", workload.metrics(sums))


def try_evaluation(workload: Workload, model: nn.Module, workers: int, device: torch.device) -> None:
    """The first rank's evaluation up to its second forward pass; its metrics too where it is over by then.

    Raises:
        Exception: what the workload's code raises; a job would end with it after its first epoch.
    """
    passes = count()

    def raise_at_second(*_: Any) -> None:
        if next(passes):
            raise EvaluationStopped

    handle = model.register_forward_pre_hook(raise_at_second)
    try:
        sums = _numbers("evaluate", "sums", workload.evaluate(model, 0, workers, device))
    except EvaluationStopped:
        return
    finally:
        handle.remove()
    metrics_of(workload, sums)


def _numbers(method: str, what: str, found: Any) -> dict[str, float]:
    if not isinstance(found, Mapping):
        raise WorkloadError(f"{method}() must return a dict of {what} by name, not a {type(found).__name__}")
    return {key: _number(method, key, value) for key, value in found.items()}


def _number(method: str, key: str, value: Any) -> float:
    try:
        return float(value)
    except (TypeError, ValueError, RuntimeError):
        line = f"{method}() must return numbers, but {key} is a {type(value).__name__}"
        raise WorkloadError(f"{line}: return its sum" if method == "evaluate" else line) from None


@contextmanager
def _until_stopped(run: Run, model: nn.Module) -> Iterator[None]:
    """Each forward pass checks whether the evaluation must stop; those of a divided model run together."""

    def stop() -> bool:
        run.watchdog.beat()
        return run.stop.requested()

    if run.model.divided:
        from jobs.layout.build import free_gathered
        from jobs.layout.lockstep import Lockstep

        lockstep = Lockstep(model, run.world.device, stop, partial(_spare, run))
        try:
            with lockstep.joined(EvaluationStopped):
                yield
        except Exception as error:
            if lockstep.in_forward:
                raise MidForward from error
            raise
        finally:
            free_gathered(model)
        return

    def raise_if_stopped(*_: Any) -> None:
        if stop():
            raise EvaluationStopped

    handle = model.register_forward_pre_hook(raise_if_stopped)
    try:
        yield
    finally:
        handle.remove()


@torch.no_grad()
def _spare(run: Run) -> None:
    """A forward pass of one sample, whose result nobody needs."""
    model, workload = run.model.evaluated, run.data.workload
    was_training = model.training
    model.eval()
    loss_of(workload, model, workload.train_batch(np.arange(1), 0, run.world.device))
    model.train(was_training)


def _summed(run: Run, values: list[float]) -> list[float]:
    """Sums over all ranks; every rank calls it with as many values, and waits for the slowest."""
    if run.world.size == 1:
        return values
    tensor = torch.tensor(values, dtype=torch.float64, device=run.world.device)
    dist.all_reduce(tensor)
    return tensor.tolist()
