"""A condition that lasts is one incident with a begin and an end; every action is reported."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch

from guard import GradientGuard, GuardConfig
from tests.guard.act.test_accumulation import linear, window
from tests.guard.act.test_accumulation import make as make_regression
from tests.guard.loops import guarded_run


def rows(path: Path, kind: str) -> list[dict[str, Any]]:
    found = [json.loads(line) for line in path.read_text().splitlines()]
    return [row for row in found if row["type"] == kind]


def test_broken_weights_in_shadow_are_not_an_incident_at_each_step(tmp_path: Path) -> None:
    path = tmp_path / "incidents.jsonl"
    fault = {"kind": "nan_loss", "step": 20}
    run = guarded_run({"mode": "shadow"}, faults=[fault], journal=path)
    for _ in range(120):
        run.attempt()
    assert run.guard is not None
    assert run.reports[-1].verdict.kind == "nonfinite"
    assert sum(kinds["nonfinite"] for kinds in run.guard.totals.anomalies.values()) == 100
    assert 1 <= len(rows(path, "incident")) <= 3
    assert run.guard.totals.incidents == len(rows(path, "incident"))
    assert path.stat().st_size < 20_000


def test_the_end_of_a_condition_is_in_the_journal(tmp_path: Path) -> None:
    path = tmp_path / "incidents.jsonl"
    model, optimizer = linear()
    config = GuardConfig(mode="shadow", budget={"consecutive_skips": 3, "rollbacks": 1})
    guard = GradientGuard(model, optimizer, config, journal=path, job="one")
    for attempt in range(60):
        optimizer.zero_grad()
        bad = 30 <= attempt < 40
        loss = model(torch.ones(8, 4)).square().mean()
        guard.backward(loss * math.nan if bad else loss)
        if bad:  # the weights stay healthy
            optimizer.zero_grad(set_to_none=False)
        guard.step()
    assert rows(path, "incident")[0]["attempt"] == 31
    ends = rows(path, "outcome")
    assert {row["outcome"] for row in ends} == {"ended"}
    assert {(row["steps"], row["job"]) for row in ends} == {(10, "one")}
    assert len(ends) == len(rows(path, "incident")) <= 3


def test_each_skip_is_an_incident_until_skips_are_what_lasts(tmp_path: Path) -> None:
    path = tmp_path / "incidents.jsonl"
    model, optimizer = linear()
    guard = GradientGuard(model, optimizer, GuardConfig(budget={"consecutive_skips": 30}), journal=path)
    reports = []
    for attempt in range(60):
        optimizer.zero_grad()
        loss = model(torch.ones(8, 4)).square().mean()
        guard.backward(loss * math.nan if attempt < 20 else loss)
        reports.append(guard.step())
    assert [r.incident is not None for r in reports[:20]] == [True] * 20
    assert {row["outcome"] for row in rows(path, "outcome")} == {"recovered"}


def test_a_micro_batch_that_is_always_dropped_is_one_incident(tmp_path: Path) -> None:
    path = tmp_path / "incidents.jsonl"
    model, optimizer = make_regression()
    guard = GradientGuard(model, optimizer, journal=path)
    for attempt in range(12):
        optimizer.zero_grad()
        window(guard, model, [0, 1, 2, 3], frozenset({1}) if 1 <= attempt < 10 else frozenset())
    assert len(rows(path, "incident")) == 1
    assert [(row["outcome"], row["steps"]) for row in rows(path, "outcome")] == [("ended", 9)]
    assert guard.totals.dropped_micro_batches == 9


@pytest.mark.parametrize("cut", [25, 35])
def test_a_condition_continues_after_a_resume(cut: int) -> None:
    fault = {"kind": "nan_loss", "step": 20, "times": 1}
    first = guarded_run({"mode": "shadow"}, faults=[fault])
    for _ in range(cut):
        first.attempt()
    assert first.guard is not None
    second = guarded_run({"mode": "shadow"})
    assert second.guard is not None
    second.model.load_state_dict(first.model.state_dict())
    second.guard.load_state_dict(first.guard.state_dict())
    before = second.guard.totals.incidents
    for _ in range(20):
        second.attempt()
    assert second.guard.totals.incidents - before <= 3 - before
