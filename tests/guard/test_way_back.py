"""Where a rate is too high, the loss on the way back to the first weights shows which one is right."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from prometheus_client import CollectorRegistry
from torch import Tensor, nn
from torch.nn import functional as F

from guard import GradientGuard, StepReport
from tests.guard.decide.test_start_rate import RIGHT, cnn
from tests.guard.loops import differences

BATCH = torch.randn(64, 64, generator=torch.Generator().manual_seed(0))
LABELS = BATCH[:, :10].argmax(1)


def trained(
    rate: float,
    attempts: int = 12,
    *,
    closure: bool = True,
    build: Callable[[], nn.Module] = cnn,
    **options: Any,
) -> tuple[nn.Module, list[StepReport]]:
    torch.manual_seed(0)
    model = build()
    optimizer = torch.optim.SGD(model.parameters(), lr=rate, momentum=0.9)
    guard = GradientGuard(model, optimizer, **options)
    reports = []

    def loss() -> Tensor:
        return F.cross_entropy(model(BATCH), LABELS)

    for _ in range(attempts):
        optimizer.zero_grad()
        guard.backward(loss())
        reports.append(guard.step(loss if closure else None))
    return model, reports


class Cursor:
    """Has no place to return to: all batches are the same."""

    def state_dict(self) -> dict[str, Any]:
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        pass


def with_dropout() -> nn.Module:
    return nn.Sequential(nn.Linear(64, 64), nn.BatchNorm1d(64), nn.ReLU(), nn.Dropout(), nn.Linear(64, 10))


@pytest.mark.parametrize("times", [10, 100, 1000])
def test_the_rate_that_is_named_is_near_the_right_one_however_far_the_present_one_is_from_it(
    times: float,
) -> None:
    _, reports = trained(times * RIGHT)
    (advice,) = {report.rate_advice for report in reports} - {1.0}
    assert 0.1 < times * advice < 10.0
    assert times == 10 or advice < 1 / 27, "further than a climb alone shows"


def test_no_duel_is_announced_where_the_guard_may_not_act() -> None:
    """Evidence that is left to a duel elsewhere is named at once, and long steps alone are no evidence."""
    _, with_cursor = trained(30 * RIGHT, 60, data=Cursor())
    _, without = trained(30 * RIGHT, 60)
    assert [report.rate_advice for report in with_cursor] == [report.rate_advice for report in without]


def test_the_search_leaves_no_trace() -> None:
    searched = [trained(100 * RIGHT, build=with_dropout, closure=closure) for closure in (True, False)]
    assert [reports[-1].rate_advice < 1.0 for _, reports in searched] == [True, True]
    assert not differences(*(dict(model.state_dict()) for model, _ in searched))
    off, _ = trained(100 * RIGHT, build=with_dropout, config={"rate": "off"})
    assert not differences(dict(searched[0][0].state_dict()), dict(off.state_dict()))


def test_it_is_an_incident_a_metric_and_a_column_and_the_step_is_applied(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    journal, registry = tmp_path / "incidents.jsonl", CollectorRegistry()
    with caplog.at_level(logging.WARNING, "guard"):
        _, reports = trained(30 * RIGHT, journal=journal, metrics=registry, job="j")
    (warned,) = [report for report in reports if report.verdict.kind == "warning"]
    rows = map(json.loads, journal.read_text().splitlines())
    (incident,) = [row for row in rows if row.get("verdict") == "warning"]
    assert incident["action"] in ("applied", "clipped")
    rate = 30 * RIGHT * warned.rate_advice
    assert f"times too high: try {rate:.2g}, or set rate: act" in incident["reason"]
    assert incident["reason"] in caplog.messages
    assert registry.get_sample_value("gradguard_rate_advice", {"job": "j"}) == warned.rate_advice
    assert reports[-1].to_row()["rate_advice"] == warned.rate_advice
    assert "rate_advice" not in reports[0].to_row()


def test_what_was_named_is_known_after_a_resume() -> None:
    torch.manual_seed(0)
    guards = []
    for _ in range(2):
        model = cnn()
        guards.append(GradientGuard(model, torch.optim.SGD(model.parameters(), lr=RIGHT)))
    guards[0]._parts.decider.rate.advice = 1 / 27
    guards[1].load_state_dict(guards[0].state_dict())
    assert guards[1]._parts.decider.rate.advice == pytest.approx(1 / 27)
