"""Nothing is silent: each anomaly is in the journal with its evidence, and so is how it ended."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from guard import GuardHalt, GuardMetrics, Incident, Journal
from guard.record.attribution import LayerHistory, rank_ranks
from tests.guard.loops import guarded_run

EVIDENCE = {
    *("type", "id", "job", "time", "attempt", "step", "verdict", "signal", "value", "score", "baseline"),
    *("action", "rolled_back_to", "steps_lost", "seconds", "recovery"),
    *("window", "layers", "ranks", "samples"),
}


def rows(path: Path) -> list[dict[str, Any]]:
    """The journal, read by a parser that refuses NaN and Infinity."""

    def refuse(constant: str) -> None:
        raise ValueError(f"{constant} is not JSON")

    return [json.loads(line, parse_constant=refuse) for line in path.read_text().splitlines()]


def run_with(path: Path | None, *faults: dict[str, Any], **config: Any) -> Any:
    settings = {"snapshot": {"every_steps": 10}, "budget": {"consecutive_skips": 2}, **config}
    return guarded_run(settings, faults=faults, journal=path, metrics=GuardMetrics())


def test_an_incident_holds_its_evidence(tmp_path: Path) -> None:
    path = tmp_path / "deep" / "incidents.jsonl"
    fault = {"kind": "scaled_gradient", "step": 25, "factor": math.nan, "parameter": "4.weight"}
    run = run_with(path, fault).train(30)
    incident, outcome = rows(path)
    assert incident.keys() >= EVIDENCE
    assert (incident["verdict"], incident["signal"], incident["value"]) == ("nonfinite", "grad_norm", "nan")
    assert (incident["action"], incident["step"], incident["attempt"]) == ("skipped", 25, 26)
    assert incident["layers"][0]["name"] == "4.weight"
    assert incident["layers"][0]["norm"] == "nan"
    assert len(incident["window"]) == 16
    assert incident["window"][-1]["attempt"] == 26
    assert incident["samples"] == [(25 * 64 + i) % 512 for i in range(64)]
    assert outcome | {"time": 0} == {
        "type": "outcome", "incident": 1, "job": "test",
        "outcome": "recovered", "step": 26, "steps": 1, "time": 0,
    }  # fmt: skip
    report = run.reports[25]
    assert report.incident is not None
    assert report.incident.to_dict() == {k: v for k, v in incident.items() if k != "type"}


def test_a_rollback_is_followed_until_its_step_is_passed(tmp_path: Path) -> None:
    path = tmp_path / "incidents.jsonl"
    run_with(path, {"kind": "nan_loss", "step": 15, "times": 2}).train(30)
    seen = rows(path)
    assert [r.get("action") or (r["outcome"], r["incident"]) for r in seen] == [
        "skipped", "rolled_back", ("recurred", 1), ("recovered", 2),
    ]  # fmt: skip
    assert seen[-1]["step"] == 16
    assert seen[-1]["steps"] == 6


def test_a_rollback_that_did_not_help_recurred(tmp_path: Path) -> None:
    path = tmp_path / "incidents.jsonl"
    run_with(path, {"kind": "nan_loss", "step": 15, "times": 4}).train(30)
    outcomes = [(r["incident"], r["outcome"]) for r in rows(path) if r["type"] == "outcome"]
    assert outcomes == [(1, "recurred"), (2, "recurred"), (3, "recurred"), (4, "recovered")]


def test_a_halt_closes_everything(tmp_path: Path) -> None:
    path = tmp_path / "incidents.jsonl"
    budget = {"consecutive_skips": 2, "rollbacks": 1}
    with pytest.raises(GuardHalt):
        run_with(path, {"kind": "nan_loss", "step": 15, "times": 99}, budget=budget).train(30)
    seen = rows(path)
    ids = {r["id"] for r in seen if r["type"] == "incident"}
    outcomes = {r["incident"]: r["outcome"] for r in seen if r["type"] == "outcome"}
    assert outcomes.keys() == ids
    assert outcomes[max(ids)] == "halted"
    assert [r["action"] for r in seen if r["type"] == "incident"][-1] == "halted"


def test_a_journal_that_cannot_be_written_does_not_stop_training(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    journal = Journal(tmp_path / "file" / "incidents.jsonl")
    run = guarded_run(faults=[{"kind": "nan_loss", "step": 5}], journal=journal).train(10)
    assert run.reports[5].incident is not None
    assert journal.failures == 2


def test_a_full_disk_does_not_stop_training() -> None:
    full = Path("/dev/full")
    if not full.exists():
        pytest.skip("no /dev/full here")
    journal = Journal(full)
    guarded_run(faults=[{"kind": "nan_loss", "step": 5}], journal=journal).train(10)
    assert journal.failures == 2


def test_a_line_cut_short_does_not_swallow_the_next(tmp_path: Path) -> None:
    path = tmp_path / "incidents.jsonl"
    journal = Journal(path)
    journal.outcome(1, "recovered", step=1, steps=1)
    path.write_text(path.read_text() + '{"type": "inci')
    journal.outcome(2, "recovered", step=2, steps=1)
    journal.outcome(3, "recovered", step=3, steps=1)
    lines = path.read_text().splitlines()
    assert [json.loads(lines[i])["incident"] for i in (0, 2, 3)] == [1, 2, 3]
    assert len(lines) == 4


def test_metrics_count_what_the_journal_records(tmp_path: Path) -> None:
    path = tmp_path / "incidents.jsonl"
    run = run_with(path, {"kind": "nan_loss", "step": 15, "times": 2}).train(30)
    totals = run.guard.metrics.snapshot()["totals"]
    incidents = [r for r in rows(path) if r["type"] == "incident"]
    assert totals["anomalies"]["loss"]["nonfinite"] == len(incidents) == 2
    assert totals["rollbacks"]["memory"] == 1
    assert totals["steps_lost"] == sum(r["steps_lost"] for r in incidents) == 5
    assert sum(totals["steps"].values()) == len(run.reports)


def test_an_incident_of_inf_and_nan_is_strict_json() -> None:
    incident = Incident(1, "j", 0.0, 1, 1, "nonfinite", "loss", math.inf, -math.inf, None, "skipped", "r")
    row = incident.to_dict()
    assert (row["value"], row["score"], row["baseline"]) == ("inf", "-inf", None)
    json.dumps(row, allow_nan=False)


def test_layers_are_ranked_by_their_share_and_compared_with_the_usual() -> None:
    history = LayerHistory(["a", "b", "c"])
    for _ in range(50):
        history.accept(np.array([1.0, 2.0, 0.5]))
    worst = history.rank(np.array([1.0, 2.0, 50.0]))
    assert [row["name"] for row in worst] == ["c", "b", "a"]
    assert worst[0]["growth"] == pytest.approx(100.0)
    assert sum(row["share"] for row in worst) == pytest.approx(1.0)


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_a_layer_that_is_not_finite_comes_first(bad: float) -> None:
    worst = LayerHistory(["a", "b"]).rank(np.array([1e20, bad]))
    assert worst[0]["name"] == "b"
    assert worst[0]["share"] is None
    assert worst[1]["share"] == 1.0


def test_at_most_eight_layers_are_named() -> None:
    assert len(LayerHistory([str(i) for i in range(20)]).rank(np.ones(20))) == 8


def test_an_incident_of_many_ranks_lists_the_worst_sixteen() -> None:
    losses, norms = np.ones(10_000), np.ones(10_000)
    losses[7], norms[[42, 4711]] = math.nan, [50.0, 60.0]
    listed = rank_ranks(losses, norms)
    assert len(listed) == 16
    assert [row.rank for row in listed[:3]] == [7, 4711, 42]
    assert listed[0].nonfinite
    assert listed[1].share == pytest.approx(3600 / (3600 + 2500 + 9_997), rel=1e-3)


def test_ranks_are_ranked_by_local_norm_and_else_by_loss() -> None:
    none = np.full(3, np.nan)
    assert [r["rank"] for r in rank_ranks(np.array([1.0, 9.0, -20.0]), none)] == [2, 1, 0]
    assert [r["rank"] for r in rank_ranks(np.array([1.0, 9.0, 2.0]), np.array([3.0, 1.0, 2.0]))] == [0, 2, 1]
    by_loss = rank_ranks(np.array([1.0, np.nan, 2.0]), none)
    assert (by_loss[0]["rank"], by_loss[0]["nonfinite"], by_loss[0]["local_norm"]) == (1, True, None)
