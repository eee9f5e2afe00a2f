"""checkpoints.jsonl: what became of every checkpoint, those that are gone included."""

from __future__ import annotations

from pathlib import Path

import pytest

from jobs.checkpoints import CheckpointManager, Policy
from jobs.checkpoints.history import History
from jobs.report.checkpoints import read_checkpoints
from jobs.run_dir.jsonl import iter_jsonl
from jobs.run_dir.reader import RunReader
from tests.jobs.checkpoints.checkpoint_fixture import parts


@pytest.fixture
def job(tmp_path: Path) -> Path:
    return tmp_path / "job"


def manager(job: Path) -> CheckpointManager:
    policy = Policy(keep=1, clean_steps=1)
    return CheckpointManager(job / "checkpoints", parts(), policy=policy, history=job / "checkpoints.jsonl")


def recorded(job: Path) -> list[tuple[int, str]]:
    return [(row["step"], row["event"]) for row in iter_jsonl(job / "checkpoints.jsonl")]


def test_what_is_written_becomes_good_and_is_retired(job: Path) -> None:
    kept = manager(job)
    for step in (10, 20):
        kept.save(step)
        kept.clean_step()
        kept.finish()
    assert recorded(job) == [
        *((10, event) for event in ("written", "good")),
        *((20, event) for event in ("written", "good")),
        (10, "retired"),
    ]
    assert [(c.step, c.fate) for c in read_checkpoints(RunReader(job))] == [(10, "retired"), (20, "good")]


def test_an_anomaly_and_a_return_to_an_earlier_step_are_reasons(job: Path) -> None:
    kept = manager(job)
    kept.save(10)
    kept.clean_step()
    kept.save(20)
    kept.mark_suspect()
    kept.finish()
    kept.save(30)
    kept.clean_step()
    kept.finish()
    kept.discard_after(25)
    kept.finish()
    assert recorded(job)[-1] == (30, "rolled_back")
    assert (20, "suspect") in recorded(job)
    fates = {checkpoint.step: checkpoint.fate for checkpoint in read_checkpoints(RunReader(job))}
    assert (fates[20], fates[30]) == ("suspect", "rolled_back")


def test_a_candidate_of_a_killed_run_is_unconfirmed(job: Path) -> None:
    killed = manager(job)
    killed.save(10)
    killed.finish()
    manager(job).load_latest()
    assert recorded(job) == [(10, "written"), (10, "unconfirmed")]


def test_the_history_records_when_and_how_large(job: Path) -> None:
    kept = manager(job)
    kept.save(10)
    kept.finish()
    (row,) = [*iter_jsonl(job / "checkpoints.jsonl")]
    (saved,) = read_checkpoints(RunReader(job))
    assert row["size"] == saved.size
    assert row["time"] > 0
    assert row["attempt"] == 0


def test_a_disk_that_refuses_costs_rows_and_is_reported_once(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "file").write_text("")
    history = History(tmp_path / "file" / "checkpoints.jsonl")
    history.add("good", 1)
    history.add("good", 2)
    assert len(caplog.records) == 1
    assert "checkpoints.jsonl" in caplog.text
