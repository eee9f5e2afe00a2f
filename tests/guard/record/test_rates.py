"""The learning rate is recorded as the optimizer used it; an incident says where that explains it."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import nn

from guard import FaultConfig, FaultInjector, GradientGuard, GuardConfig, StepReport

RATE, FACTOR = 0.002, 3000.0


def spiked(config: dict[str, Any] | None = None, *, injector_first: bool = False) -> list[StepReport]:
    """For the update of step 70 the learning rate is 3,000 times too high."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(8, 32), nn.ReLU(), nn.Linear(32, 1))
    optimizer = torch.optim.AdamW(model.parameters(), lr=RATE, fused=True)
    fault = [FaultConfig(kind="lr_spike", step=70, factor=FACTOR)]
    if injector_first:
        faults = FaultInjector(fault, model=model, optimizer=optimizer)
    guard = GradientGuard(model, optimizer, GuardConfig.model_validate(config or {}))
    if not injector_first:
        faults = FaultInjector(fault, model=model, optimizer=optimizer)
    reports = []
    for _ in range(80):
        faults.begin(guard.steps)
        inputs = torch.randn(32, 8)
        optimizer.zero_grad()
        guard.backward((model(inputs) - inputs.sum(1, keepdim=True)).square().mean())
        reports.append(guard.step())
    return reports


@pytest.mark.parametrize("injector_first", [True, False])
@pytest.mark.parametrize("mode", ["exact", "shadow"])
def test_the_rate_of_each_update_is_the_one_that_the_optimizer_used(mode: str, injector_first: bool) -> None:
    reports = spiked({"mode": mode}, injector_first=injector_first)
    at = next(i for i, r in enumerate(reports) if r.learning_rate != RATE)
    assert reports[at].learning_rate == pytest.approx(RATE * FACTOR)
    assert reports[at].to_row()["lr"] == pytest.approx(RATE * FACTOR)
    assert [r.learning_rate for r in reports[:at]] == [RATE] * at
    assert math.isclose(reports[at + 1].learning_rate, RATE)


@pytest.mark.parametrize("mode", ["exact", "deferred", "shadow"])
def test_the_incident_names_the_rate_of_the_update_before_where_that_explains_it(mode: str) -> None:
    incident = next(r.incident for r in spiked({"mode": mode}) if r.incident is not None)
    assert incident.previous_learning_rate == pytest.approx(RATE * FACTOR)
    assert incident.learning_rate == pytest.approx(RATE)
    assert "a learning rate of 6, 3e+03 times the usual" in incident.reason
    assert incident.window[-2].learning_rate == pytest.approx(RATE * FACTOR)


def test_an_incident_that_the_rate_does_not_explain_does_not_mention_it() -> None:
    torch.manual_seed(0)
    model = nn.Linear(4, 1)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    warmup = torch.optim.lr_scheduler.LinearLR(optimizer, 0.01, total_iters=40)
    guard = GradientGuard(model, optimizer, scheduler=warmup)
    for attempt in range(40):
        optimizer.zero_grad()
        loss = model(torch.ones(8, 4)).square().mean()
        guard.backward(loss * math.nan if attempt % 10 == 9 else loss)
        report = guard.step()
        if report.incident is not None:
            assert "learning rate" not in report.incident.reason
            assert report.incident.previous_learning_rate is not None
    assert guard.totals.incidents == 4
