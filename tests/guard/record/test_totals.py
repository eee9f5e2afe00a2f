"""What the guard counts, with and without Prometheus, and that a restart continues it."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import torch
from torch import nn

from guard import GradientGuard, GuardMetrics
from guard.record.totals import Totals
from guard.records import Verdict
from guard.types import StepReport
from tests.guard.loops import guarded_run


def test_a_guard_without_metrics_knows_how_often_it_skipped() -> None:
    config = {"snapshot": {"every_steps": 10}, "budget": {"consecutive_skips": 2}}
    run = guarded_run(config, faults=[{"kind": "nan_loss", "step": 15, "times": 2}]).train(30)
    assert run.guard is not None
    assert run.guard.metrics is None
    totals = run.guard.totals
    assert (totals.skips, totals.rollbacks, totals.incidents) == (1, {"memory": 1, "disk": 0}, 2)
    assert totals.anomalies["loss"]["nonfinite"] == 2
    assert totals.steps_lost == sum(r.incident.steps_lost for r in run.reports if r.incident) == 5
    assert totals.attempts == len(run.reports)
    assert totals.guard_seconds.sum > 0


def test_an_exclusion_that_lasts_is_one_incident_and_an_anomaly_at_each_attempt() -> None:
    totals = Totals()
    for _ in range(3):
        totals.observe(StepReport(excluded_ranks=[1], anomaly=Verdict("nonfinite"), guard_seconds=0.0))
    assert (totals.anomalies["loss"]["nonfinite"], totals.excluded_ranks) == (3, 3)


def guard_of(**options: Any) -> GradientGuard:
    torch.manual_seed(0)
    model = nn.Linear(4, 1)
    return GradientGuard(model, torch.optim.SGD(model.parameters(), lr=0.1), **options)


def one_step(guard: GradientGuard, model_loss: float = 1.0) -> StepReport:
    (parameter,) = guard._parts.observer.parameters[:1]
    parameter.grad = None
    guard.backward((parameter.square().sum()) * model_loss)
    return guard.step()


def test_totals_continue_from_the_state_of_a_guard_with_or_without_metrics() -> None:
    first = guard_of()
    one_step(first)
    assert one_step(first, math.nan).action == "skipped"
    resumed = guard_of(metrics=GuardMetrics())
    resumed.load_state_dict(first.state_dict())
    assert resumed.totals.skips == 1
    assert resumed.metrics is not None
    assert resumed.metrics.snapshot()["totals"]["steps"]["skipped"] == 1
    again = guard_of()
    again.load_state_dict(resumed.state_dict())
    assert again.totals.state_dict() == first.totals.state_dict()


def test_a_state_from_before_the_totals_loads_from_that_of_the_metrics() -> None:
    guard = guard_of(metrics=GuardMetrics())
    one_step(guard, math.nan)
    state = guard.state_dict()
    old = state["ledger"]
    del old["totals"]
    old |= {"incidents": 1, "last_kind": "nonfinite"}
    for metrics in (None, GuardMetrics()):
        resumed = guard_of(metrics=metrics)
        resumed.load_state_dict(state)
        assert (resumed.totals.skips, resumed.totals.incidents) == (1, 1)


def test_a_dropped_micro_batch_is_one_anomaly_of_its_record(tmp_path: Path) -> None:
    guard = guard_of(journal=tmp_path / "incidents.jsonl")
    (parameter,) = guard._parts.observer.parameters[:1]
    parameter.grad = None
    for bad in (1.0, math.nan):
        guard._state._optimizer.zero_grad()
        for factor in (1.0, bad, 1.0, 1.0):
            guard.backward(parameter.square().sum() * factor, weight=0.25)
        report = guard.step()
    assert (report.verdict.kind, report.dropped_micro_batches, report.anomalous) == ("ok", 1, True)
    assert guard.totals.anomalies["loss"]["nonfinite"] == guard.totals.incidents == 1
    (row,) = (tmp_path / "incidents.jsonl").read_text().splitlines()
    assert json.loads(row)["dropped_micro_batches"] == 1
