"""A guard that only watches changes nothing and reports what it would have done."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from guard import FaultConfig, FaultInjector
from tests.guard.loops import differences, guarded_run, plain_run

BUDGET = {"consecutive_skips": 2, "rollbacks": 1, "stuck_skips": 3}
FAULT = {"kind": "scaled_gradient", "step": 40, "factor": 1e3, "times": 8}


def faulty(mode: str, journal: Path | None = None, fault: dict[str, Any] | None = None) -> Any:
    config = {"mode": mode, "budget": BUDGET, "clip": {"kind": "auto"}}
    return guarded_run(config, faults=[fault or FAULT], journal=journal)


def plain(fault: dict[str, Any]) -> Any:
    """The same broken run without any guard."""
    run = plain_run()
    run.faults = FaultInjector([FaultConfig.model_validate(fault)], model=run.model, optimizer=run.optimizer)
    for step in range(60):
        run.faults.begin(step)
        run.train_plain(1, max_norm=None)
    return run


@pytest.mark.parametrize("mode", ["shadow", "off"])
def test_a_broken_run_stays_as_broken_as_it_is(mode: str) -> None:
    watched = faulty(mode).train(60)
    assert {r.action for r in watched.reports} == {"applied"}
    assert not differences(plain(FAULT).state(), watched.state())


@pytest.mark.parametrize("mode", ["shadow", "off"])
def test_a_batch_that_looks_bad_is_not_computed_again_by_who_only_watches(mode: str) -> None:
    flipped = {"kind": "bitflip_gradient", "step": 40, "parameter": "0.weight"}
    watched = faulty(mode, fault=flipped)
    for _ in range(60):
        watched.attempt(closure=lambda: pytest.fail("computed again"))
    assert not differences(plain(flipped).state(), watched.state())


def test_shadow_reports_what_it_would_have_done_and_never_halts(tmp_path: Path) -> None:
    path = tmp_path / "incidents.jsonl"
    nan = {"kind": "nan_loss", "step": 20, "times": 8}
    run = faulty("shadow", path, nan).train(30)
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    incidents = [row for row in rows if row["type"] == "incident"]
    assert {i["action"] for i in incidents} == {"applied"}
    assert [i["would"] for i in incidents] == ["skip", "rollback", "halt"]
    assert [r.incident is not None for r in run.reports[:20]] == [False] * 20


def test_off_makes_no_incident() -> None:
    run = faulty("off", fault={"kind": "nan_loss", "step": 20}).train(30)
    assert all(r.incident is None and r.verdict.kind == "ok" for r in run.reports)


def test_an_acting_guard_never_reports_what_it_would_have_done() -> None:
    run = faulty("exact", fault={"kind": "nan_loss", "step": 20}).train(30)
    assert run.reports[20].incident is not None
    assert run.reports[20].incident.would is None
