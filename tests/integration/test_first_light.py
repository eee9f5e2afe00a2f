"""The whole product once: a guarded training on Ray Train explodes three times, recovers and finishes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from tests.integration.harness.runner import GRADGUARD, SMALL, Sandbox

pytestmark = pytest.mark.timeout(400)

FAULTS = [
    {"kind": "nan_loss", "step": 30, "rank": 1},
    {"kind": "lr_spike", "step": 50, "factor": 10000.0},
    {"kind": "scaled_gradient", "step": 75, "rank": 0, "factor": 1e6},
]


@pytest.fixture(scope="module")
def guarded(tmp_path_factory: pytest.TempPathFactory) -> tuple[Sandbox, str]:
    sandbox = Sandbox(tmp_path_factory.mktemp("guarded"))
    run = sandbox.run(GRADGUARD, "train", sandbox.spec(faults=FAULTS))
    assert run.returncode == 0, run.stdout
    return sandbox, run.stdout


def test_the_guarded_run_survives_and_learns(guarded: tuple[Sandbox, str]) -> None:
    result = guarded[0].result("digits")
    assert result["status"] == "succeeded"
    assert result["steps"] == 100
    assert result["metrics"]["test_accuracy"] > 0.9
    assert result["rollbacks"] >= 1
    assert result["skips"] >= 2
    assert (
        result["attempts"] == result["steps"] + result["skips"] + result["steps_lost"] + result["rollbacks"]
    )


@pytest.mark.slow
def test_the_same_run_without_the_guard_is_destroyed_by_the_first_fault(tmp_path: Path) -> None:
    sandbox = Sandbox(tmp_path)
    short = {"max_steps": 34, "eval_every_epochs": 9}
    off = {"mode": "off"}
    spec = sandbox.spec("unguarded", faults=FAULTS[:1], guard=off, train=short, model=SMALL)
    run = sandbox.run(GRADGUARD, "train", spec)
    assert run.returncode == 0, run.stdout
    assert sandbox.result("unguarded")["metrics"]["test_accuracy"] < 0.3


def test_every_incident_is_in_the_journal_with_its_evidence(guarded: tuple[Sandbox, str]) -> None:
    sandbox, _ = guarded
    rows = sandbox.rows("digits", "incidents.jsonl")
    incidents = [row for row in rows if row["type"] == "incident"]
    assert len(incidents) == sandbox.result("digits")["incidents"]
    nan = incidents[0]
    assert (nan["verdict"], nan["action"], nan["step"]) == ("nonfinite", "skipped", 30)
    assert nan["ranks"][0] == {**nan["ranks"][0], "rank": 1, "nonfinite": True}
    assert len(nan["samples"]) == 64
    assert all(incident["layers"] for incident in incidents)
    rolled_back = next(incident for incident in incidents if incident["action"] == "rolled_back")
    assert rolled_back["rolled_back_to"] in (40, 50), "a snapshot from before the fault"
    assert rolled_back["steps_lost"] == rolled_back["step"] - rolled_back["rolled_back_to"]
    assert rolled_back["recovery"]["lr_scale"] == 1.0, "a first rollback only moves on to other data"
    closed = {row["incident"]: row["outcome"] for row in rows if row["type"] == "outcome"}
    assert closed[rolled_back["id"]] == "recovered"


def test_every_attempt_is_in_the_metrics_file(guarded: tuple[Sandbox, str]) -> None:
    sandbox, _ = guarded
    rows = [row for row in sandbox.rows("digits", "metrics.jsonl") if "action" in row]
    assert [row["attempt"] for row in rows] == list(range(1, len(rows) + 1))
    assert len(rows) == sandbox.result("digits")["attempts"]
    assert sum("layers" in row for row in rows) >= 10
    actions: dict[str, Any] = {}
    for row in rows:
        actions[row["action"]] = actions.get(row["action"], 0) + 1
    assert actions["rolled_back"] == sandbox.result("digits")["rollbacks"]


def test_the_report_is_one_file_that_names_the_incidents(guarded: tuple[Sandbox, str]) -> None:
    page = (guarded[0].path / "runs" / "digits" / "report.html").read_text()
    assert (guarded[0].path / "runs" / "digits" / "report.png").read_bytes().startswith(b"\x89PNG")
    assert "rank 1" in page.lower()
    assert "<svg" in page
    assert 'src="http' not in page


def test_the_output_shows_the_events_and_the_way_to_the_report(guarded: tuple[Sandbox, str]) -> None:
    output = guarded[1]
    assert "rank 1" in output
    assert "rolled back" in output
    assert "report.html" in output
    assert "Traceback" not in output


def test_a_finished_job_is_not_run_twice_nor_overwritten(guarded: tuple[Sandbox, str]) -> None:
    sandbox, _ = guarded
    before = sandbox.result("digits")
    for flags, code in (((), 2), (("--resume",), 0)):
        again = sandbox.run(GRADGUARD, "train", "digits.yaml", *flags)
        assert again.returncode == code
        assert len(again.stdout.strip().splitlines()) == 1
    assert sandbox.result("digits") == before
