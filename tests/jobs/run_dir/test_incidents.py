"""Of a journal of any length what matters is kept, and nothing of it is given twice."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from jobs.report.data import MOST_INCIDENTS, read_run
from jobs.report.page import render
from jobs.run_dir.incidents import NewIncidents, join_outcomes

MANY = 6000


def incident(number: int, **more: Any) -> dict[str, Any]:
    return {
        "type": "incident",
        "id": number,
        "job": "long",
        "step": number,
        "attempt": number,
        "time": float(number),
        "verdict": "spike",
        "action": "skipped",
        **more,
    }


def test_the_most_severe_incidents_are_kept_and_of_equal_ones_the_newest() -> None:
    rows = [incident(number) for number in range(1, 101)]
    rows[9] = incident(10, action="halted")
    rows[19] = incident(20, action="rolled_back")
    rows[29], rows[39] = (incident(number, verdict="nonfinite") for number in (30, 40))
    rows.insert(25, {"type": "outcome", "job": "long", "incident": 20, "outcome": "recovered"})
    found, attempts = join_outcomes(rows, -1, 6, severest=True)
    assert [one.id for one in found] == [10, 20, 30, 40, 99, 100]
    assert [one.outcome is not None for one in found] == [False, True, False, False, False, False]
    assert attempts == [*range(1, 101)]
    assert [one.id for one in join_outcomes(rows, -1, 2, severest=True).incidents] == [10, 20]


def test_the_report_of_a_long_journal_shows_a_part_and_states_the_rest(tmp_path: Path) -> None:
    rows = [
        incident(number, action="rolled_back" if number == 7 else "skipped") for number in range(1, MANY + 1)
    ]
    (tmp_path / "incidents.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    step = {"action": "applied", "step": 1, "attempt": 1, "loss": 1.0}
    (tmp_path / "metrics.jsonl").write_text(json.dumps(step) + "\n")
    run = read_run(tmp_path)
    assert len(run.incidents) == MOST_INCIDENTS
    assert run.incidents[0].id == 7, "the only one that was rolled back"
    page = render(run)
    assert "6,000 incidents: the 24 most severe with their evidence" in page
    assert "4,476 more are in incidents.jsonl" in page
    assert "2,000 incidents marked, 4,000 lesser ones not" in page
    assert len(page) < 2_000_000


def test_a_journal_that_grows_gives_each_incident_once(tmp_path: Path) -> None:
    path = tmp_path / "incidents.jsonl"
    journal = NewIncidents(path)
    assert list(journal.fresh()) == []
    lines = [json.dumps(incident(number, action="rolled_back")) + "\n" for number in (1, 2, 3)]
    path.write_text("".join(lines[:2]) + lines[2][:9])
    assert next(journal.fresh())["id"] == 1
    assert [row["id"] for row in journal.fresh()] == [1, 2], "the first one was not taken to its end"
    path.write_text(lines[0])
    assert list(journal.fresh()) == [], "cut back by a resume"
    path.write_text("".join(lines))
    assert [row["id"] for row in journal.fresh()] == [3]
    assert journal.rollbacks == 3
