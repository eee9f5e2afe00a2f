"""Why a training on Ray failed: a cause and one line; everything else goes to the log file."""

from __future__ import annotations

import logging
import re
import time
import traceback
from collections.abc import Mapping
from pathlib import Path

import ray
from ray.train import WorkerGroupError

from jobs.failures import Cause, Failure, crash_line, explain_error, first_line
from jobs.ray_internals.messages import is_health_check_timeout, is_out_of_memory

logger = logging.getLogger(__name__)

# What the other ranks see when one of them is gone.
_CONSEQUENCE = re.compile(
    r"^RankLost:|gloo|nccl|connection (reset|closed)|broken pipe|processgroup", re.IGNORECASE
)
CONTROLLER_DEATHS = (ray.exceptions.ActorDiedError, ray.exceptions.OutOfMemoryError)
"""What Ray raises in place of the controller's answer."""


class WorkerFailed(RuntimeError):
    """An error of a worker, explained where it happened: its own type may exist there only."""

    def __init__(self, failure: Failure) -> None:
        super().__init__(failure)
        self.failure = Failure(*failure)

    def __str__(self) -> str:
        return self.failure.line


def explain(error: BaseException | None, crashes: Path | None = None) -> Failure:
    """What went wrong, and on which rank; with several failed ranks the cause is that of the first.

    Args:
        error: of the training.
        crashes: the folder of ``crash_file``, if there is one.
    """
    if isinstance(error, WorkerGroupError):
        failures = _first_failures(error.worker_failures, crashes)
        cause: Cause = next(iter(failures.values())).cause if failures else "job"
        line = by_rank(error.worker_failures, crashes) or first_line(error)
        return Failure(cause, line, retry=all(one.retry for one in failures.values()))
    if isinstance(error, CONTROLLER_DEATHS):
        if is_out_of_memory(str(error)):
            text = "the training controller was killed because its node ran out of memory"
            return Failure("out_of_memory", text)
        return Failure("cluster", "the training controller died")
    inner = user_error(error)
    return Failure("job", first_line(inner)) if inner is None else explain_error(inner)


def one_line(error: BaseException) -> str:
    """``explain`` for a person."""
    return explain(error).line


def can_retry(error: BaseException) -> bool:
    """Whether another try from the last checkpoint can end otherwise."""
    return explain(error).retry


def by_rank(failures: Mapping[int, BaseException], crashes: Path | None = None) -> str:
    """The failure of each rank, without those that only lost their connection to a rank that failed."""
    ranks: dict[str, list[str]] = {}
    for rank, one in _first_failures(failures, crashes).items():
        ranks.setdefault(one.line, []).append(str(rank))
    return "; ".join(f"rank{'s'[: len(who) > 1]} {', '.join(who)}: {line}" for line, who in ranks.items())


def crash_file(crashes: Path, rank: int) -> Path:
    """Where ``faulthandler`` writes what a rank died of."""
    return crashes / f"crash-{rank}.txt"


def _first_failures(failures: Mapping[int, BaseException], crashes: Path | None) -> dict[int, Failure]:
    found = {rank: _of_worker(error, crashes, rank) for rank, error in sorted(failures.items())}
    return {rank: one for rank, one in found.items() if not _CONSEQUENCE.search(one.line)} or found


def user_error(error: BaseException | None) -> BaseException | None:
    """The user's exception inside Ray's."""
    while True:
        inner = getattr(error, "health_check_failure", None) or getattr(error, "cause", None)
        if not isinstance(inner, BaseException):
            return error
        error = inner


def log_failure(path: Path, error: BaseException | Mapping[int, BaseException] | None) -> None:
    """Appends an error, or that of each rank, with its traceback to a file; a failed write is only logged."""
    errors = error if isinstance(error, Mapping) else {None: error}
    try:
        with path.open("a", encoding="utf-8") as file:
            for rank, one in errors.items():
                where = "" if rank is None else f" rank {rank}"
                trace = "".join(traceback.format_exception(one)) if one is not None else "no message\n"
                file.write(f"{time.strftime('%Y-%m-%dT%H:%M:%S%z')}{where}\n{trace}\n")
    except OSError as problem:
        logger.warning("cannot write %s: %s", path, problem.strerror)


def log_crashes(path: Path, crashes: Path, failures: Mapping[int, BaseException]) -> None:
    """Appends the stacks of the ranks that crashed to the log."""
    for rank in failures:
        if dump := _lines(crash_file(crashes, rank)):
            log_failure(path, {rank: RuntimeError("\n".join(dump))})


def _of_worker(error: BaseException, crashes: Path | None, rank: int) -> Failure:
    inner, text = user_error(error), str(error)
    if isinstance(inner, WorkerFailed):
        return inner.failure
    if isinstance(inner, ray.exceptions.ActorDiedError | ray.exceptions.WorkerCrashedError):
        if crashes is not None and (line := crash_line(_lines(crash_file(crashes, rank)))):
            return Failure("job", line)
        if not is_out_of_memory(text):
            return Failure("worker_lost", "the worker process died (killed, or out of memory)")
    if is_health_check_timeout(text):
        return Failure("stalled", "the worker did not answer for longer than scale.stall_timeout_s")
    failure = explain_error(inner or error)
    if failure.cause != "out_of_memory" and is_out_of_memory(text):
        return Failure("out_of_memory", "the worker was killed because its node ran out of memory")
    return failure


def _lines(path: Path) -> list[str]:
    try:
        return path.read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return []
