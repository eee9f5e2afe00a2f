"""If one rank fails, the step ends on all others with its cause, which it writes to the default store.

The others read it when a collective fails, be it the guard's or DDP's own all-reduce in backward. An error in
the user's own code is written when it ends the process. A rank that was killed writes nothing; the others
then each register in the store, and the error names the missing ranks. A collective in the user's own code,
such as FSDP2's in a forward pass, raises its own error; where that ends the process, a note names the cause.
"""

from __future__ import annotations

import functools
import sys
import time
from collections.abc import Callable
from datetime import timedelta
from multiprocessing import util
from typing import Any, TypeVar

import torch.distributed as dist

from guard.errors import GuardError, GuardHalt, RankDivergence, RankLost

COUNT, ENTRY, PRESENT = "gradguard/failures", "gradguard/failure/", "gradguard/present/"
GRACE_S = 3.0
"""A connection may break before the cause is written: a failing rank needs up to seconds to get there."""
_SIGNS = ("gloo", "nccl", "connection", "timed out", "timeout", "socket", "peer")
_ON_ALL_RANKS = (GuardHalt, RankDivergence, RankLost)
"""Not the failure of one rank."""
_REPORTED = "_gradguard_reported"
Method = TypeVar("Method", bound=Callable[..., Any])
_kept: list[tuple[Any, int]] = []
"""Store and rank at the last ``report_exit``: a loop may destroy its process group before its error ends it.
Not of rank 0, which may hold the store's port."""


def report_exit() -> None:
    """From now on an error that ends this process is reported as its cause; nothing with one rank."""
    if not _several():
        return
    if not isinstance(sys.excepthook, _Hook):
        sys.excepthook = _Hook(sys.excepthook)
        util.Finalize(None, _report_ending, exitpriority=0)  # multiprocessing calls no excepthook
    rank = dist.get_rank()
    _kept[:] = [(default_store(), rank)] if rank else []


class _Hook:
    """In the place of ``sys.excepthook``, which it calls."""

    def __init__(self, before: Callable[..., Any]) -> None:
        self._before = before

    def __call__(self, kind: type[BaseException], error: BaseException, trace: Any) -> None:
        if _several() and isinstance(error, RuntimeError) and _of_a_collective(error):
            error.add_note(f"{RankLost.__name__}: {_cause(error)}")
        else:
            report_failure(error)
        self._before(kind, error, trace)


def _report_ending() -> None:
    error = sys.exc_info()[1]
    if isinstance(error, SystemExit):  # by which torch's own process starter ends after an error
        error = error.__context__ if error.code else None
    if error is not None:
        report_failure(error)


def report_failure(error: BaseException) -> None:
    """Writes this rank's cause to the store, where the other ranks look for it; nothing with one rank."""
    error = error if isinstance(error, BaseException) else RuntimeError(str(error))
    stores = [(default_store(), dist.get_rank())] if _several() else _kept
    if not stores or isinstance(error, _ON_ALL_RANKS) or getattr(error, _REPORTED, False):
        return
    store, rank = stores[0]
    try:
        setattr(error, _REPORTED, True)
        text = str(error).strip().splitlines() or ["no message"]
        place = store.add(COUNT + "/begun", 1)
        cause = f"rank {rank} failed: {type(error).__name__}: {text[0][:300]}"
        store.set(f"{ENTRY}{place}", cause)
        store.add(COUNT, 1)
    except RuntimeError:
        return  # the store is gone with the process that held it: there is no way to report


def raises_rank_lost(method: Method) -> Method:
    """Makes a method raise ``RankLost`` where another rank is lost, and report its own errors to the rest."""

    @functools.wraps(method)
    def wrapped(*args: Any, **kwargs: Any) -> Any:
        try:
            return method(*args, **kwargs)
        except _ON_ALL_RANKS:
            raise
        except RuntimeError as error:
            if not _several() or not _of_a_collective(error):
                report_failure(error)
                raise
            raise RankLost(_cause(error)) from error
        except Exception as error:
            report_failure(error)
            raise

    return wrapped  # type: ignore[return-value]


def _of_a_collective(error: RuntimeError) -> bool:
    own = (GuardError, *_ON_ALL_RANKS)
    return not isinstance(error, own) and any(sign in str(error).lower() for sign in _SIGNS)


def _cause(error: RuntimeError) -> str:
    """What the failed ranks wrote, waiting ``GRACE_S`` for it; else which ranks do not answer."""
    message = (str(error).strip().splitlines() or [""])[0][:300]
    deadline = time.monotonic() + GRACE_S
    missing: list[int] = []
    try:
        store = default_store()
        store.set(f"{PRESENT}{dist.get_rank()}", "")
        while time.monotonic() < deadline:
            failures = store.add(COUNT, 0)
            if failures:
                store.wait([f"{ENTRY}1"], timedelta(seconds=GRACE_S))
                return "; ".join(store.get(f"{ENTRY}{i + 1}").decode() for i in range(failures))
            missing = [rank for rank in range(dist.get_world_size()) if not store.check([f"{PRESENT}{rank}"])]
            time.sleep(0.05)
    except RuntimeError:
        if not missing:
            return (
                f"a rank is gone, and with it the store (rank 0 holds it, unless a launcher does): {message}"
            )
    ranks = f"rank {', '.join(map(str, missing))}" if missing else "a rank"
    return f"{ranks} does not answer and reported no cause (killed, out of memory or hung): {message}"


def _several() -> bool:
    return dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1


def default_store() -> Any:
    """The key-value store through which the ranks found each other."""
    return dist.distributed_c10d._get_default_store()
