"""Detects a training loop that hangs: to Ray its process looks healthy, so the worker watches itself."""

from __future__ import annotations

import sys
import sysconfig
import threading
import time
import traceback
from collections.abc import Callable
from concurrent.futures import Future
from typing import Any, TypeVar

from jobs.failures import Cause

T = TypeVar("T")
CHECKS_PER_TIMEOUT = 8


class WorkerStalled(RuntimeError):
    """The training loop has made no progress for too long; the text names the line that hangs."""

    cause_of_failure: Cause = "stalled"


class Watchdog:
    """The time of the loop's last progress. ``beat`` at every batch; ``pause`` before what may take long.

    Args:
        timeout_s: after this many seconds without a beat the loop counts as stalled.
    """

    def __init__(self, timeout_s: float) -> None:
        self.timeout_s = timeout_s
        self._last: float | None = None

    def beat(self) -> None:
        """The next batch begins."""
        self._last = time.monotonic()

    def pause(self) -> None:
        """Nothing is expected until the next beat."""
        self._last = None

    @property
    def stalled(self) -> bool:
        """Whether a batch has taken longer than ``timeout_s``."""
        last = self._last
        return last is not None and time.monotonic() - last > self.timeout_s


def run_watched(work: Callable[[], T], watchdog: Watchdog) -> T:
    """Runs ``work`` in a thread and returns or raises what it does.

    Raises:
        WorkerStalled: no beat within the timeout. The thread still runs: end its process.
    """
    answer: Future[T] = Future()
    thread = threading.Thread(target=_run, args=(work, answer), name="train", daemon=True)
    thread.start()
    while thread.is_alive():
        thread.join(watchdog.timeout_s / CHECKS_PER_TIMEOUT)
        if thread.is_alive() and watchdog.stalled:
            raise _stalled(thread, watchdog.timeout_s)
    return answer.result()


def _run(work: Callable[[], T], answer: Future[T]) -> None:
    try:
        answer.set_result(work())
    except BaseException as error:  # noqa: BLE001 - raised again by the waiting thread
        answer.set_exception(error)


def _stalled(thread: threading.Thread, timeout_s: float) -> WorkerStalled:
    frame = sys._current_frames().get(thread.ident or 0)
    stack = traceback.extract_stack(frame) if frame is not None else []
    error = WorkerStalled(f"no batch was finished for {timeout_s:g} s (scale.stall_timeout_s){_where(stack)}")
    error.add_note("".join(["The training loop was here:\n", *traceback.format_list(stack)]))
    return error


def _where(stack: list[Any]) -> str:
    """The innermost line outside of libraries."""
    libraries = tuple(sysconfig.get_path(name) for name in ("stdlib", "purelib", "platlib"))
    own = [frame for frame in stack if not frame.filename.startswith(libraries)]
    if not own:
        return ""
    return f": it hangs in {own[-1].name}, line {own[-1].lineno} of {own[-1].filename}"
