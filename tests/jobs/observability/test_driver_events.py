"""What the driver makes of what the hub answers."""

from __future__ import annotations

from typing import Any

from rich.console import Console

from jobs.observability.console import LiveView
from jobs.observability.driver_events import DriverEvents


def status(rollbacks: int) -> dict[str, Any]:
    return {"counters": {"rollbacks": rollbacks}}


def test_each_rollback_that_is_new_is_told_once_with_its_reason() -> None:
    told: list[tuple[Any, ...]] = []
    view = LiveView(Console(quiet=True))
    events = DriverEvents(None, "fashion", view, lambda *notice: told.append(notice), grace_s=1.0)
    why = [
        {"level": "warning", "text": "spike of loss: rolled back to step 40"},
        {"level": "info", "text": "x"},
    ]
    events._tell_of_rollbacks(status(2), why)  # of the run before, which it continues
    events._tell_of_rollbacks(status(2), [])
    assert told == []
    events._tell_of_rollbacks(status(3), why)
    events._tell_of_rollbacks(status(3), why)
    (notice,) = told
    assert notice[0] == "rolled_back"
    assert notice[1] == "fashion was rolled back at step 0; 3 so far: spike of loss: rolled back to step 40"
