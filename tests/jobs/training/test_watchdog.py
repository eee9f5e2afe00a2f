"""A training loop that hangs is detected in its own process, and the line that hangs is named."""

from __future__ import annotations

import pickle
import threading
import traceback

import pytest

from jobs.training.watchdog import Watchdog, WorkerStalled, run_watched

NEVER = threading.Event()


def hangs(watchdog: Watchdog) -> None:
    watchdog.beat()
    NEVER.wait()


def test_a_batch_that_never_ends_raises_and_its_line_is_named() -> None:
    watchdog = Watchdog(timeout_s=0.1)
    with pytest.raises(
        WorkerStalled, match=r"for 0.1 s .*: it hangs in hangs, line \d+ of .*test_watchdog.py"
    ) as raised:
        run_watched(lambda: hangs(watchdog), watchdog)
    again = pickle.loads(pickle.dumps(raised.value))
    assert "NEVER.wait()" in "".join(traceback.format_exception(again)), "the log has the whole stack"


def test_a_loop_that_pauses_or_makes_progress_is_not_stalled() -> None:
    watchdog = Watchdog(timeout_s=0.1)
    assert not watchdog.stalled, "before the first batch, building may take its time"

    def works() -> str:
        for _ in range(30):
            watchdog.beat()
            NEVER.wait(0.01)
        watchdog.pause()
        NEVER.wait(0.3)
        return "done"

    assert run_watched(works, watchdog) == "done"


def test_errors_come_through_as_they_are() -> None:
    def fails() -> None:
        raise TimeoutError("the user's own")

    with pytest.raises(TimeoutError, match="the user's own"):
        run_watched(fails, Watchdog(timeout_s=0.1))
