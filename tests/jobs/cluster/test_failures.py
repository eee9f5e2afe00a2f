"""A failed training is explained in one line that names the rank; the rest is in the log."""

from __future__ import annotations

from pathlib import Path

import pytest
from ray.exceptions import ActorDiedError, OutOfMemoryError
from ray.train import WorkerGroupError

from jobs.cluster.failures import LONGEST_LINE, explain, log_failure
from jobs.run_dir.result import CAUSES
from jobs.training.watchdog import WorkerStalled

CONSEQUENCE = RuntimeError("[gloo/transport/tcp/pair.cc:547] Connection closed by peer [127.0.0.1]:4711")


def test_the_cause_is_reported_rather_than_its_effects_on_other_ranks() -> None:
    error = WorkerGroupError("failed", {0: CONSEQUENCE, 1: ValueError("first\nthe last line")})
    assert explain(error).line == "rank 1: ValueError: the last line"


def test_a_lost_connection_is_reported_where_nothing_else_is_known() -> None:
    assert explain(WorkerGroupError("failed", {0: CONSEQUENCE})).line.startswith(
        "rank 0: RuntimeError: [gloo"
    )


def test_dead_processes_are_named() -> None:
    assert "worker process died" in explain(WorkerGroupError("failed", {2: ActorDiedError()})).line
    assert explain(ActorDiedError()).line == "the training controller died"
    oom = RuntimeError("Task was killed due to the node running low on memory.")
    assert "ran out of memory" in explain(WorkerGroupError("failed", {0: oom})).line
    killed = OutOfMemoryError("Task was killed due to the node running low on memory.\nRefer to the manual.")
    assert explain(killed).line == "the training controller was killed because its node ran out of memory"


@pytest.mark.parametrize(
    ("error", "cause"),
    [
        (ActorDiedError(), "cluster"),
        (OutOfMemoryError("Task was killed due to the node running low on memory."), "out_of_memory"),
        (ValueError("in the driver"), "job"),
        (WorkerGroupError("failed", {0: CONSEQUENCE, 1: ActorDiedError()}), "worker_lost"),
        (WorkerGroupError("failed", {1: ValueError("in the loop")}), "job"),
        (WorkerGroupError("failed", {0: RuntimeError("killed by the memory monitor")}), "out_of_memory"),
        (WorkerGroupError("failed", {0: RuntimeError("the health check timed out")}), "stalled"),
        (WorkerGroupError("failed", {0: WorkerStalled("no batch was finished for 9 s")}), "stalled"),
        (WorkerGroupError("failed", {}), "job"),
    ],
)
def test_each_failure_has_a_cause_for_programs(error: BaseException, cause: str) -> None:
    assert explain(error).cause == cause
    assert cause in CAUSES


def test_the_line_is_short_however_long_the_error_is() -> None:
    assert len(explain(ValueError("x" * 10_000)).line) == LONGEST_LINE
    assert explain(ValueError()).line == "ValueError: no message"


def test_the_log_grows_and_holds_the_traceback(tmp_path: Path) -> None:
    log = tmp_path / "train.log"
    for rank in (0, 1):
        try:
            raise ValueError(f"broken {rank}")
        except ValueError as error:
            log_failure(log, {rank: error})
    text = log.read_text()
    assert text.count("Traceback") == 2
    assert "rank 1" in text
    log_failure(tmp_path / "no" / "folder", ValueError("a log that cannot be written is no matter"))
