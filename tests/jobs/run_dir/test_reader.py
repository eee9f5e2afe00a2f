"""The one reader of a job's folder: what client, report and page show is the same."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest

from guard.records import COLUMNS, NUMBERS
from guard.rows import JsonlWriter
from jobs.client.job_files import JobFiles
from jobs.report.data import read_run
from jobs.run_dir.reader import MOST_NEW_ROWS, LiveSteps, RunReader
from jobs.run_dir.steps import RolledBack, StepTable
from tests.jobs.report.report_fixture import nan_incident, rollback_incident, rows, write_job, write_rows


def step_row(attempt: int, step: int | None = None, **fields: Any) -> dict[str, Any]:
    plain = {"action": "applied", "verdict": "ok", "loss": 1.0, "rolled_back_to": None}
    return {"attempt": attempt, "step": attempt if step is None else step, **plain, **fields}


def test_an_id_that_came_twice_is_two_incidents_for_everyone(tmp_path: Path) -> None:
    """A restarted job may have used a number twice; an outcome belongs to the latest one of its number."""
    outcome = {"type": "outcome", "incident": 1, "outcome": "recovered", "steps": 5}
    second = {**outcome, "outcome": "recurred"}
    write_rows(tmp_path / "incidents.jsonl", [nan_incident(1), outcome, rollback_incident(1), second])
    expected = [("incident-1", 69, "recovered"), ("incident-1-2", 151, "recurred")]
    api = JobFiles(tmp_path).incident_rows()
    assert [(row["anchor"], row["step"], row["outcome"]) for row in api] == expected
    for found in (RunReader(tmp_path).incidents(), read_run(tmp_path).incidents):
        assert [(i.anchor, i.step, i.outcome.kind) for i in found if i.outcome] == expected


def test_a_long_journal_is_read_in_parts(tmp_path: Path) -> None:
    outcome = {"type": "outcome", "incident": 3, "outcome": "recovered", "steps": 5}
    write_rows(tmp_path / "incidents.jsonl", [*map(nan_incident, range(1, 51)), outcome])
    reader = RunReader(tmp_path)
    assert [incident.id for incident in reader.incidents(start=1, limit=3)] == [2, 3, 4]
    assert [incident.outcome is not None for incident in reader.incidents(start=1, limit=3)] == [0, 1, 0]
    assert reader.incidents(start=50) == []
    newest, attempts = reader.journal(start=-1, limit=4)
    assert ([incident.id for incident in newest], len(attempts)) == ([47, 48, 49, 50], 50)


def test_numbers_are_read_by_the_type_of_their_column(tmp_path: Path) -> None:
    write_rows(tmp_path / "metrics.jsonl", [step_row(1, loss=math.nan, signal="nan", lr="text", score=True)])
    columns = JobFiles(tmp_path).metrics().columns
    assert columns.keys() == COLUMNS.keys()
    assert [columns[name] for name in ("loss", "signal", "lr", "score")] == [["nan"], ["nan"], [None], [None]]
    progress = JobFiles(tmp_path).progress()
    assert progress is not None
    assert (progress.step, progress.loss, progress.learning_rate) == (1, "nan", None)


def test_attempts_that_came_again_are_read_once(tmp_path: Path) -> None:
    write_rows(tmp_path / "metrics.jsonl", [*map(step_row, (1, 2, 3)), step_row(2, loss=5.0)])
    series = JobFiles(tmp_path).metrics(["loss"])
    assert (series.rows, series.columns["attempt"], series.columns["loss"]) == (2, [1, 2], [1.0, 5.0])


def test_a_table_that_is_thinned_keeps_the_last_row_and_every_anomaly() -> None:
    odd = {30: {"verdict": "spike"}, 31: {"action": "rolled_back"}}
    table = StepTable().extend(step_row(i, **odd.get(i, {})) for i in range(1000))
    kept = table.thinned(10)["attempt"]
    assert kept == sorted({*range(0, 1000, 100), 30, 31, 999})


def test_spans_that_grow_are_those_of_the_whole_run() -> None:
    steps, targets = [1, 2, 3, 4, 2, 3, 1, 2], {5: 2, 7: 1}
    all_rows = [step_row(i + 1, step, rolled_back_to=targets.get(i + 1)) for i, step in enumerate(steps)]
    growing = RolledBack()
    for row in all_rows:
        growing.add(StepTable().extend([row]).columns)
    whole = RolledBack()
    whole.add(StepTable().extend(all_rows).columns)
    assert growing.spans == whole.spans == [(3, 5), (2, 7)]


def test_a_live_view_gets_what_is_new_and_the_spans_of_the_report(tmp_path: Path) -> None:
    recorded = [row for row in rows(240) if "action" in row]
    live = LiveSteps(RunReader(tmp_path), points=50)
    assert live.poll() is None
    with JsonlWriter(tmp_path / "metrics.jsonl") as writer:
        for row in recorded[:140]:
            writer.write(row)
        first = live.poll()
        assert first is not None
        assert first.restarted
        assert len(first.columns["attempt"]) < 60
        for row in recorded[140:]:
            writer.write(row)
    second = live.poll()
    assert second is not None
    assert not second.restarted
    assert second.columns["attempt"] == [row["attempt"] for row in recorded[140:]]
    assert second.numbers == NUMBERS
    assert tuple(second.rolled_back) == read_run(write_job(tmp_path / "other")).rolled_back
    assert live.poll() is None


@pytest.mark.parametrize("again", [False, True], ids=["many new rows", "attempts that come again"])
def test_a_live_view_starts_again_with_a_thinned_history(tmp_path: Path, again: bool) -> None:
    live = LiveSteps(RunReader(tmp_path), points=50)
    with JsonlWriter(tmp_path / "metrics.jsonl") as writer:
        writer.write(step_row(1))
        assert live.poll() is not None
        for attempt in [1, 2] if again else range(2, MOST_NEW_ROWS + 3):
            writer.write(step_row(attempt, loss=2.0))
    found = live.poll()
    assert found is not None
    assert found.restarted
    assert len(found.columns["attempt"]) < 60
    assert found.columns["loss"][-1] == 2.0
    assert live.poll() is None


def test_only_the_end_of_a_long_file_is_read(tmp_path: Path) -> None:
    write_rows(tmp_path / "metrics.jsonl", map(step_row, range(1, 5000)))
    last = RunReader(tmp_path).last_steps(["loss"], most_bytes=1 << 12)
    assert 10 < len(last) < 100
    assert last.columns["attempt"][-1] == 4999
    assert RunReader(tmp_path / "none").last_step() is None
