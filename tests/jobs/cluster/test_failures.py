"""A failed training is explained in one line that names the rank; the rest is in the log."""

from __future__ import annotations

from pathlib import Path

from ray.exceptions import ActorDiedError, OutOfMemoryError
from ray.train import WorkerGroupError

from jobs.cluster.failures import LONGEST_LINE, log_failure, one_line

CONSEQUENCE = RuntimeError("[gloo/transport/tcp/pair.cc:547] Connection closed by peer [127.0.0.1]:4711")


def test_the_cause_is_told_and_not_what_the_other_ranks_saw_of_it() -> None:
    error = WorkerGroupError("failed", {0: CONSEQUENCE, 1: ValueError("first\nthe last line")})
    assert one_line(error) == "rank 1: ValueError: the last line"


def test_a_lost_connection_is_told_where_nothing_else_is_known() -> None:
    assert one_line(WorkerGroupError("failed", {0: CONSEQUENCE})).startswith("rank 0: RuntimeError: [gloo")


def test_dead_processes_are_named() -> None:
    assert "worker process died" in one_line(WorkerGroupError("failed", {2: ActorDiedError()}))
    assert one_line(ActorDiedError()) == "the training controller died"
    oom = RuntimeError("Task was killed due to the node running low on memory.")
    assert "ran out of memory" in one_line(WorkerGroupError("failed", {0: oom}))
    killed = OutOfMemoryError("Task was killed due to the node running low on memory.\nRefer to the manual.")
    assert one_line(killed) == "the training controller was killed because its node ran out of memory"


def test_the_line_is_short_whatever_the_error_says() -> None:
    assert len(one_line(ValueError("x" * 10_000))) == LONGEST_LINE
    assert one_line(ValueError()) == "ValueError: no message"


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
