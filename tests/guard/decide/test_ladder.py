"""Skips, rollbacks and the halt: the ladder on its own, and climbed by a run."""

from __future__ import annotations

import math
from typing import Any

import pytest

from guard import BudgetConfig, GuardHalt, GuardMetrics, Verdict
from guard.decide.ladder import EscalationLadder
from tests.guard.loops import differences, guarded_run

NAN = Verdict("nonfinite", "loss", math.inf, None)
SUSPECT = Verdict("suspect", "loss", 9.0, 1.0)
SPIKE = Verdict("spike", "loss", 9.0, 1.0)
OK = Verdict("ok", "loss", 0.0, 1.0)


def rungs(
    ladder: EscalationLadder, verdicts: list[Verdict], *, first: int = 1, can_roll_back: bool = True
) -> list[str]:
    return [
        ladder.decide(v, attempt=first + i, can_roll_back=can_roll_back).rung for i, v in enumerate(verdicts)
    ]


@pytest.mark.parametrize("kind", ["ok", "drift", "vanishing"])
def test_a_step_that_is_only_watched_is_applied(kind: Any) -> None:
    assert (
        rungs(EscalationLadder(BudgetConfig(), "skip"), [Verdict(kind, "loss", 0.0, None)] * 5)
        == ["apply"] * 5
    )


def test_too_many_skips_in_a_row_roll_back() -> None:
    ladder = EscalationLadder(BudgetConfig(consecutive_skips=3), "skip")
    assert rungs(ladder, [NAN, SUSPECT, NAN, NAN]) == ["skip", "skip", "rollback", "skip"]


def test_a_clean_step_ends_the_row() -> None:
    ladder = EscalationLadder(BudgetConfig(consecutive_skips=2), "skip")
    assert rungs(ladder, [NAN, OK, NAN, OK, NAN]) == ["skip", "apply", "skip", "apply", "skip"]


def test_a_spike_rolls_back_at_once_if_it_can() -> None:
    assert rungs(EscalationLadder(BudgetConfig(), "skip"), [SPIKE]) == ["rollback"]
    assert rungs(EscalationLadder(BudgetConfig(), "skip"), [SPIKE], can_roll_back=False) == ["skip"]


def test_a_suspect_step_can_be_clipped_instead() -> None:
    assert rungs(EscalationLadder(BudgetConfig(), "clip"), [SUSPECT] * 4 + [NAN]) == ["clip"] * 4 + ["skip"]


def test_a_spent_budget_halts() -> None:
    ladder = EscalationLadder(BudgetConfig(rollbacks=2), "skip")
    assert rungs(ladder, [SPIKE, OK] * 2 + [SPIKE]) == ["rollback", "apply"] * 2 + ["halt"]
    assert ladder.rollbacks_left(6) == 0


def test_rollbacks_leave_the_window() -> None:
    ladder = EscalationLadder(BudgetConfig(rollbacks=1, window_steps=10), "skip")
    assert rungs(ladder, [SPIKE], first=1) == ["rollback"]
    assert rungs(ladder, [OK, SPIKE], first=9) == ["apply", "halt"]
    assert rungs(ladder, [OK, SPIKE], first=11) == ["apply", "rollback"]


def test_bad_data_right_after_a_rollback_is_skipped_not_rolled_back_again() -> None:
    ladder = EscalationLadder(BudgetConfig(rollbacks=2, consecutive_skips=3), "skip")
    assert rungs(ladder, [SPIKE] * 100) == ["rollback"] + ["skip"] * 99
    assert rungs(ladder, [OK, SPIKE], first=101) == ["apply", "rollback"]


def test_no_rollback_allowed_halts_at_the_first_spike() -> None:
    assert rungs(EscalationLadder(BudgetConfig(rollbacks=0), "skip"), [SPIKE]) == ["halt"]


def test_stuck_skips_halt() -> None:
    ladder = EscalationLadder(BudgetConfig(stuck_skips=4), "skip")
    assert rungs(ladder, [NAN] * 4, can_roll_back=False) == ["skip"] * 3 + ["halt"]


def test_a_restored_ladder_continues_identically() -> None:
    whole, resumed = (
        EscalationLadder(BudgetConfig(rollbacks=2, consecutive_skips=2), "skip") for _ in range(2)
    )
    rungs(whole, [SPIKE, NAN])
    resumed.load_state_dict(whole.state_dict())
    verdicts = [NAN, OK, NAN, NAN]
    assert rungs(whole, verdicts, first=3) == rungs(resumed, verdicts, first=3)


def broken(budget: dict[str, Any], **fault: Any) -> Any:
    config = {"snapshot": {"every_steps": 10}, "budget": budget}
    return guarded_run(config, faults=[{"kind": "nan_loss", "step": 15, "times": 1000, **fault}])


def test_a_run_that_cannot_continue_halts_with_the_last_healthy_weights() -> None:
    run = broken({"consecutive_skips": 2, "rollbacks": 1}).train(10)
    healthy = run.state()
    with pytest.raises(GuardHalt, match="the budget is spent") as halted:
        run.train(20)
    assert not differences(healthy, run.state())
    incident = halted.value.incident
    assert (incident.action, incident.rolled_back_to, incident.verdict) == ("halted", 10, "nonfinite")
    assert run.guard.steps == 10


def test_counters_survive_the_rollbacks_they_count() -> None:
    run = broken({"consecutive_skips": 2, "rollbacks": 3, "window_steps": 1000})
    with pytest.raises(GuardHalt):
        run.train(20)
    assert sum(r.action == "rolled_back" for r in run.reports) == 3
    assert run.guard.attempts == len(run.reports) + 1


def test_a_run_stuck_in_skips_halts() -> None:
    run = broken({"consecutive_skips": 100, "stuck_skips": 5})
    with pytest.raises(GuardHalt, match="5 steps in a row"):
        run.train(20)
    assert [r.action for r in run.reports[15:]] == ["skipped"] * 4


def test_bad_data_from_the_first_step_on_halts_and_changes_nothing() -> None:
    run = broken({"consecutive_skips": 2, "rollbacks": 2}, step=0)
    before = run.state()
    with pytest.raises(GuardHalt):
        run.train(1)
    assert not differences(before, run.state())


def test_a_halt_is_counted_like_any_other_attempt() -> None:
    metrics = GuardMetrics()
    config = {"budget": {"consecutive_skips": 1, "rollbacks": 0}}
    run = guarded_run(config, faults=[{"kind": "nan_loss", "step": 15}], metrics=metrics)
    with pytest.raises(GuardHalt):
        run.train(20)
    assert sum(metrics.snapshot()["totals"]["steps"].values()) == 16
