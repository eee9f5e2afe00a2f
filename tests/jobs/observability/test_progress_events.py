"""A step as a row of metrics.jsonl, and an incident as one line."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import torch
from torch import nn

from guard import FaultConfig, FaultInjector, GradientGuard, GuardConfig, StepReport
from jobs.observability.event_line import event


def reports(fault: dict[str, Any], steps: int = 40) -> list[StepReport]:
    """A real guarded run with one fault."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 2))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    faults = FaultInjector([FaultConfig(**fault)], model=model, optimizer=optimizer)
    guard = GradientGuard(model, optimizer, GuardConfig(snapshot={"every_steps": 5}))
    seen = []
    while guard.steps < steps:
        faults.begin(guard.steps)
        inputs = torch.randn(64, 8)
        optimizer.zero_grad()
        guard.backward(faults.loss(nn.functional.cross_entropy(model(inputs), (inputs[:, 0] > 0).long())))
        seen.append(guard.step())
    return seen


def test_a_row_is_strict_json_whatever_happened() -> None:
    for report in reports({"kind": "nan_loss", "step": 30}):
        row = json.loads(json.dumps(report.to_row(), allow_nan=False))
        assert row["action"] == report.action
        assert "layers" not in row


def test_the_event_of_a_skip_has_what_was_seen_and_done() -> None:
    (skipped,) = [r for r in reports({"kind": "nan_loss", "step": 30}) if r.action == "skipped"]
    level, text = event(skipped.incident)
    assert level == "warning"
    assert text.startswith("step 30: nonfinite, loss nan (baseline ")
    assert text.endswith("step skipped")


def test_the_event_of_a_rollback_has_its_target() -> None:
    rolled = next(r for r in reports({"kind": "lr_spike", "step": 30, "factor": 1e5}) if r.rolled_back_to)
    level, text = event(rolled.incident)
    assert level == "error"
    assert f"rolled back {rolled.incident.steps_lost} steps to step {rolled.rolled_back_to}" in text


def test_the_event_of_a_hardware_fault_has_node_and_device() -> None:
    """The loss is bad the first time and good the second."""
    torch.manual_seed(0)
    model = nn.Linear(4, 1)
    guard = GradientGuard(model, torch.optim.SGD(model.parameters(), lr=0.1))
    for bad in (False, False, True):
        model.zero_grad()
        guard.backward(model(torch.ones(8, 4)).mean() * (float("nan") if bad else 1.0))
        report = guard.step(lambda: model(torch.ones(8, 4)).mean())
    level, text = event(report.incident, ["node 3f2a, cpu"])
    assert level == "error"
    assert "hardware fault on rank 0 (node 3f2a, cpu); computed again" in text
    assert "hardware fault on rank 0; " in event(report.incident)[1]


def test_an_excluded_rank_is_in_the_event_and_in_the_row() -> None:
    (skipped,) = [r for r in reports({"kind": "nan_loss", "step": 30}) if r.action == "skipped"]
    incident = replace(skipped.incident, excluded_ranks=[1], action="applied")
    report = replace(skipped, incident=incident, action="applied", excluded_ranks=[1])
    level, text = event(report.incident, ["a", "node 3f2a, cpu"])
    assert level == "warning"
    assert text.endswith("rank 1 (node 3f2a, cpu) excluded, because the data stays bad")
    assert report.to_row()["excluded_ranks"] == [1]
    assert "excluded_ranks" not in skipped.to_row()
