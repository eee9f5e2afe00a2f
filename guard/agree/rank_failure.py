"""A rank that failed ends the step on all others, with its cause: it leaves one line in the default store.

The others read it when a collective fails, be it the guard's or DDP's own all-reduce in backward. A rank that
was killed leaves nothing; then those that live call the roll there, and the error names who does not answer.
"""

from __future__ import annotations

import functools
import time
from collections.abc import Callable
from datetime import timedelta
from typing import Any, TypeVar

import torch.distributed as dist

from guard.errors import GuardError, RankLost

COUNT, ENTRY, PRESENT = "gradguard/failures", "gradguard/failure/", "gradguard/present/"
GRACE_S = 3.0
_SIGNS = ("gloo", "nccl", "connection", "timed out", "timeout", "socket", "peer")
Method = TypeVar("Method", bound=Callable[..., Any])


def report_failure(error: BaseException) -> None:
    """Leaves this rank's cause where the other ranks look for it; does nothing where there is one rank."""
    if not _several():
        return
    try:
        store = _store()
        text = str(error).strip().splitlines() or ["no message"]
        place = store.add(COUNT + "/begun", 1)
        cause = f"rank {dist.get_rank()} failed: {type(error).__name__}: {text[0][:300]}"
        store.set(f"{ENTRY}{place}", cause)
        store.add(COUNT, 1)
    except RuntimeError:
        return  # the store went with the process that held it: nobody can be told


def raises_rank_lost(method: Method) -> Method:
    """A method in which a lost rank becomes a ``RankLost``, and an error of its own is told to the rest."""

    @functools.wraps(method)
    def wrapped(*args: Any, **kwargs: Any) -> Any:
        try:
            return method(*args, **kwargs)
        except GuardError:
            raise
        except RuntimeError as error:
            if not _several() or not any(sign in str(error).lower() for sign in _SIGNS):
                report_failure(error)
                raise
            raise RankLost(_cause(error)) from error
        except Exception as error:
            report_failure(error)
            raise

    return wrapped  # type: ignore[return-value]


def _cause(error: RuntimeError) -> str:
    """What the failed ranks left, waited for a moment, since a connection may break before it is written."""
    said = (str(error).strip().splitlines() or [""])[0][:300]
    deadline = time.monotonic() + GRACE_S
    silent: list[int] = []
    try:
        store = _store()
        store.set(f"{PRESENT}{dist.get_rank()}", "")
        while time.monotonic() < deadline:
            told = store.add(COUNT, 0)
            if told:
                store.wait([f"{ENTRY}1"], timedelta(seconds=GRACE_S))
                return "; ".join(store.get(f"{ENTRY}{i + 1}").decode() for i in range(told))
            silent = [rank for rank in range(dist.get_world_size()) if not store.check([f"{PRESENT}{rank}"])]
            time.sleep(0.05)
    except RuntimeError:
        if not silent:
            return f"a rank is gone, and with it the store (rank 0 holds it, unless a launcher does): {said}"
    who = f"rank {', '.join(map(str, silent))}" if silent else "a rank"
    return f"{who} does not answer and left no cause (killed, out of memory or hung): {said}"


def _several() -> bool:
    return dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1


def _store() -> Any:
    return dist.distributed_c10d._get_default_store()
