"""Why a training failed: one line for the user, the traceback for the log file."""

from __future__ import annotations

import logging
import re
import time
import traceback
from collections.abc import Mapping
from pathlib import Path

import ray
from ray.train import WorkerGroupError

from jobs.ray_internals.messages import is_health_check_timeout, is_out_of_memory

logger = logging.getLogger(__name__)

LONGEST_LINE = 300
# What the other ranks see when one of them is gone.
_CONSEQUENCE = re.compile(r"gloo|nccl|connection (reset|closed)|broken pipe|processgroup", re.IGNORECASE)
CONTROLLER_DEATHS = (ray.exceptions.ActorDiedError, ray.exceptions.OutOfMemoryError)
"""What Ray raises in place of the controller's answer."""


def one_line(error: BaseException | None) -> str:
    """What went wrong, and on which rank, in one line."""
    if isinstance(error, WorkerGroupError):
        return by_rank(error.worker_failures) or first_line(error)
    if isinstance(error, CONTROLLER_DEATHS):
        how = "was killed because its node ran out of memory" if is_out_of_memory(str(error)) else "died"
        return f"the training controller {how}"
    return first_line(cause(error))


def by_rank(failures: Mapping[int, BaseException]) -> str:
    """The failure of each rank; one that only lost its connection to a failed rank is omitted."""
    lines = {rank: _of_worker(error) for rank, error in sorted(failures.items())}
    first = {rank: line for rank, line in lines.items() if not _CONSEQUENCE.search(line)}
    return "; ".join(f"rank {rank}: {line}" for rank, line in (first or lines).items())


def cause(error: BaseException | None) -> BaseException | None:
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
                file.write(f"{time.strftime('%Y-%m-%dT%H:%M:%S%z')}{where}\n{_traceback(one)}\n")
    except OSError as problem:
        logger.warning("cannot write %s: %s", path, problem.strerror)


def _of_worker(error: BaseException) -> str:
    text = str(error)
    if is_out_of_memory(text):
        return "the worker was killed because its node ran out of memory"
    inner = cause(error)
    if isinstance(inner, ray.exceptions.ActorDiedError | ray.exceptions.WorkerCrashedError):
        return "the worker process died (killed, or out of memory)"
    if is_health_check_timeout(text):
        return "the worker did not answer for longer than scale.stall_timeout_s"
    return first_line(inner)


def _traceback(error: BaseException | None) -> str:
    return "".join(traceback.format_exception(error)) if error is not None else "no message\n"
