"""No restart lowers a total that Prometheus has seen: of a worker, of the hub, of both, of the cluster."""

import json
from pathlib import Path
from typing import Any

import pytest

from guard.record.metrics import GuardMetrics
from guard.types import StepReport
from jobs.observability.counter_carryover import CounterCarryover
from jobs.observability.hub import Hub

JOB = "fashion"


class Worker:
    """Rank 0 from its start, from a checkpoint if there is one, until it dies."""

    def __init__(self, folder: Path, checkpoint: dict[str, Any] | None = None) -> None:
        self.metrics = GuardMetrics(job=JOB)
        if checkpoint is not None:
            self.metrics.load_state_dict(json.loads(json.dumps(checkpoint)))
        self.carryover = CounterCarryover(folder / ".counters.json")

    def steps(self, count: int) -> None:
        for _ in range(count):
            report = StepReport(loss=0.5, grad_norm=1.0, learning_rate=0.1, guard_seconds=0.001)
            self.metrics.totals.observe(report)
            self.metrics.observe(report)

    def push(self, hub: Hub) -> None:
        hub.push(JOB, self.carryover.carry(self.metrics.snapshot()), {"phase": "training"}, [])


def applied(hub: Hub) -> float:
    _, (row,) = hub.rows()
    assert row.snapshot is not None
    totals = row.snapshot["totals"]
    assert totals["guard_seconds"]["buckets"]["+Inf"] == totals["attempts"] == totals["steps"]["applied"]
    return totals["steps"]["applied"]


@pytest.fixture
def hubs() -> Any:
    """Makes hubs, the next one of which knows nothing of the last, and closes them."""
    made: list[Hub] = []

    def make() -> Hub:
        made.append(Hub(0))
        return made[-1]

    yield make
    for hub in made:
        hub.close()


@pytest.mark.parametrize("hub_dies", [False, True], ids=["worker", "worker and hub"])
def test_what_a_restarted_worker_does_again_comes_on_top(hubs: Any, tmp_path: Path, hub_dies: bool) -> None:
    hub, first = hubs(), Worker(tmp_path)
    first.steps(6)
    checkpoint = first.metrics.state_dict()
    first.steps(4)
    first.push(hub)
    assert applied(hub) == 10
    hub = hubs() if hub_dies else hub
    second = Worker(tmp_path, checkpoint)
    second.push(hub)
    assert applied(hub) == 10
    second.steps(1)
    second.push(hub)
    assert applied(hub) == 11
    assert second.metrics.snapshot()["totals"]["attempts"] == 7


def test_a_hub_that_dies_after_a_worker_shows_what_was_shown_before(hubs: Any, tmp_path: Path) -> None:
    first = Worker(tmp_path)
    checkpoint = first.metrics.state_dict()
    first.steps(10)
    first.push(hubs())
    second = Worker(tmp_path, checkpoint)
    second.steps(0)
    second.push(hubs())
    second.steps(2)
    second.push(hub := hubs())
    assert applied(hub) == 12


def test_totals_grow_over_many_restarts_without_any_checkpoint(hubs: Any, tmp_path: Path) -> None:
    seen = []
    for _ in range(4):
        worker, hub = Worker(tmp_path), hubs()
        worker.push(hub)
        seen.append(applied(hub))
        worker.steps(3)
        worker.push(hub)
        seen.append(applied(hub))
    assert seen == [0, 3, 3, 6, 6, 9, 9, 12]


def test_a_job_that_is_resumed_to_the_end_counts_like_one(hubs: Any, tmp_path: Path) -> None:
    first, hub = Worker(tmp_path), hubs()
    first.steps(5)
    first.push(hub)
    second = Worker(tmp_path, first.metrics.state_dict())
    second.push(hub)
    second.steps(5)
    second.push(hub)
    assert applied(hub) == 10


def test_a_new_job_of_the_name_starts_at_zero(hubs: Any, tmp_path: Path) -> None:
    old, new = tmp_path / "old", tmp_path / "new"
    old.mkdir(), new.mkdir()
    hub, first, second = hubs(), Worker(old), Worker(new)
    first.steps(5)
    first.push(hub)
    second.push(hub)
    assert applied(hub) == 0


def test_a_folder_that_cannot_be_written_is_reported_once_and_costs_nothing(
    hubs: Any, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    worker, hub = Worker(tmp_path / "gone"), hubs()
    for _ in range(3):
        worker.steps(1)
        worker.push(hub)
    assert applied(hub) == 3
    assert caplog.text.count("cannot write .counters.json") == 1


def test_a_file_that_was_cut_is_no_reason_to_fail(hubs: Any, tmp_path: Path) -> None:
    (tmp_path / ".counters.json").write_text('{"created": 1.0, "tot')
    worker = Worker(tmp_path)
    worker.steps(2)
    worker.push(hub := hubs())
    assert applied(hub) == 2
