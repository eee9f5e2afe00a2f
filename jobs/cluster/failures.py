"""Why a training failed: a cause and one line; everything else goes to the log file."""

from __future__ import annotations

import logging
import re
import time
import traceback
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

import ray
from ray.train import WorkerGroupError

from jobs.ray_internals.messages import is_health_check_timeout, is_out_of_memory
from jobs.run_dir.result import Cause
from jobs.training.watchdog import WorkerStalled

logger = logging.getLogger(__name__)

LONGEST_LINE = 300
# What the other ranks see when one of them is gone.
_CONSEQUENCE = re.compile(r"gloo|nccl|connection (reset|closed)|broken pipe|processgroup", re.IGNORECASE)
CONTROLLER_DEATHS = (ray.exceptions.ActorDiedError, ray.exceptions.OutOfMemoryError)
"""What Ray raises in place of the controller's answer."""


class Failure(NamedTuple):
    """Why a training failed: a cause for programs, a line for the user."""

    cause: Cause
    line: str


def explain(error: BaseException | None) -> Failure:
    """What went wrong, and on which rank; with several failed ranks the cause is that of the first."""
    if isinstance(error, WorkerGroupError):
        failures = _first_failures(error.worker_failures)
        cause: Cause = next(iter(failures.values())).cause if failures else "job"
        return Failure(cause, by_rank(error.worker_failures) or first_line(error))
    if isinstance(error, CONTROLLER_DEATHS):
        if is_out_of_memory(str(error)):
            text = "the training controller was killed because its node ran out of memory"
            return Failure("out_of_memory", text)
        return Failure("cluster", "the training controller died")
    return Failure("job", first_line(user_error(error)))


def by_rank(failures: Mapping[int, BaseException]) -> str:
    """The failure of each rank, without those that only lost their connection to a rank that failed."""
    return "; ".join(f"rank {rank}: {one.line}" for rank, one in _first_failures(failures).items())


def _first_failures(failures: Mapping[int, BaseException]) -> dict[int, Failure]:
    found = {rank: _of_worker(error) for rank, error in sorted(failures.items())}
    return {rank: one for rank, one in found.items() if not _CONSEQUENCE.search(one.line)} or found


def user_error(error: BaseException | None) -> BaseException | None:
    """The user's exception inside Ray's."""
    while True:
        inner = getattr(error, "health_check_failure", None) or getattr(error, "cause", None)
        if not isinstance(inner, BaseException):
            return error
        error = inner


def first_line(error: BaseException | None) -> str:
    """The type and the text of an error, in one line."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    text = lines[-1] if lines else "no message"
    return f"{type(error).__name__}: {text}"[:LONGEST_LINE]


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


def _of_worker(error: BaseException) -> Failure:
    text = str(error)
    if is_out_of_memory(text):
        return Failure("out_of_memory", "the worker was killed because its node ran out of memory")
    inner = user_error(error)
    if isinstance(inner, ray.exceptions.ActorDiedError | ray.exceptions.WorkerCrashedError):
        return Failure("worker_lost", "the worker process died (killed, or out of memory)")
    if is_health_check_timeout(text):
        return Failure("stalled", "the worker did not answer for longer than scale.stall_timeout_s")
    return Failure("stalled" if isinstance(inner, WorkerStalled) else "job", first_line(inner))
