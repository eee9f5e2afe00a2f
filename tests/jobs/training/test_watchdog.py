"""A training loop that hangs is noticed in its own process, and where it hangs is said."""

from __future__ import annotations

import pickle
import threading
import traceback

import pytest

from jobs.training.watchdog import Watchdog, WorkerStalled, watched

NEVER = threading.Event()


def hangs(pulse: Watchdog) -> None:
    pulse.beat()
    NEVER.wait()


def test_a_batch_that_never_ends_is_given_up_and_its_line_is_named() -> None:
    pulse = Watchdog(timeout_s=0.1)
    with pytest.raises(
        WorkerStalled, match=r"for 0.1 s .*: it hangs in hangs, line \d+ of .*test_watchdog.py"
    ) as told:
        watched(lambda: hangs(pulse), pulse)
    again = pickle.loads(pickle.dumps(told.value))
    assert "NEVER.wait()" in "".join(traceback.format_exception(again)), "the log has the whole stack"


def test_what_rests_or_gets_on_is_left_alone() -> None:
    pulse = Watchdog(timeout_s=0.1)
    assert not pulse.stalled, "before the first batch, building may take its time"

    def works() -> str:
        for _ in range(30):
            pulse.beat()
            NEVER.wait(0.01)
        pulse.rest()
        NEVER.wait(0.3)
        return "done"

    assert watched(works, pulse) == "done"


def test_errors_come_through_as_they_are() -> None:
    def fails() -> None:
        raise TimeoutError("the user's own")

    with pytest.raises(TimeoutError, match="the user's own"):
        watched(fails, Watchdog(timeout_s=0.1))
