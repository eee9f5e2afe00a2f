"""Spikes that training makes itself are let through; what does not end, or is a fault, is rolled back."""

from __future__ import annotations

import json
import math
from itertools import pairwise
from statistics import median
from typing import Any

import pytest
import torch
from sklearn.datasets import load_digits
from torch import Tensor, nn
from torch.nn import functional as F

from guard import FaultConfig, FaultInjector, GradientGuard, GuardHalt, StepReport
from guard.decide.own_spikes import OwnSpikes
from guard.records import OK, Verdict
from guard.types import Decision

LIMIT = 0.2
SPIKE = Verdict("spike", "loss", 8.0, 0.1)


def row(
    spikes: OwnSpikes, attempt: int, loss: float, *, step: int | None = None, far: bool = False
) -> tuple[str | None, str | None]:
    """One attempt: how a trial ended, and the rung that is right instead of another."""
    verdict = SPIKE if loss > LIMIT else OK
    ended = spikes.observe(verdict, loss, attempt, attempt if step is None else step)
    decision: Decision | None = None
    if ended is None and verdict is SPIKE:
        decision = spikes.instead(verdict, loss, attempt, limit=LIMIT, moved_far=lambda: far)
    return ended, decision and decision.rung


def begun(window: int = 1000) -> OwnSpikes:
    """A batch was skipped at attempt 10, and has the same loss again."""
    spikes = OwnSpikes(window)
    assert row(spikes, 10, 1.0) == (None, None)
    spikes.skipped(1.0, 10)
    assert row(spikes, 11, 1.0, step=10) == (None, "apply")
    return spikes


def test_a_batch_that_is_the_only_one_is_let_through_after_a_skip() -> None:
    assert begun().on_trial


@pytest.mark.parametrize(("again", "far"), [(1.1, False), (1.0, True)])
def test_another_batch_or_weights_that_moved_far_begin_no_trial(again: float, far: bool) -> None:
    spikes = OwnSpikes(1000)
    row(spikes, 10, 1.0)
    spikes.skipped(1.0, 10)
    assert row(spikes, 11, again, step=10, far=far) == (None, None)
    assert not spikes.on_trial


def test_what_comes_again_exactly_after_a_rollback_is_no_fault_even_where_weights_moved_far() -> None:
    spikes = OwnSpikes(1000)
    path = [0.1 / (1 + step) for step in range(20)] + [3.0]
    for step, loss in enumerate(path):
        last = row(spikes, step, loss, far=True)
    assert last == (None, None), "the first time it may be a fault"
    spikes.rolled_back()
    rungs = [row(spikes, 20 + step, path[step], step=step, far=True)[1] for step in range(10, 21)]
    assert rungs == [None] * 10 + ["skip"], "is it the batch?"
    spikes.skipped(3.0, 40)
    assert row(spikes, 41, 3.0, step=20, far=True) == (None, "apply")
    assert [spikes.explained(), spikes.explained()] == [1, 0]


def test_another_path_after_a_rollback_explains_nothing() -> None:
    spikes = OwnSpikes(1000)
    for step, loss in enumerate((0.1, 0.09, 3.0)):
        row(spikes, step, loss, far=True)
    spikes.rolled_back()
    row(spikes, 3, 0.091, step=1)
    assert row(spikes, 4, 3.0, step=2, far=True) == (None, None)


def test_a_spike_that_ended_lets_similar_ones_through_at_once_and_larger_ones_not() -> None:
    spikes = begun()
    ended = [row(spikes, 12 + i, loss)[0] for i, loss in enumerate([2.0, 0.5] + [0.1] * 8)]
    assert ended == [None] * 9 + ["over"]
    larger = Verdict("spike", "loss", 2.1 * SPIKE.score, 0.1)
    assert spikes.instead(larger, 9.0, 50, limit=LIMIT, moved_far=lambda: False) is None
    assert spikes.instead(SPIKE, 1.0, 50, limit=LIMIT, moved_far=lambda: True) is None
    assert row(spikes, 51, 1.0) == (None, "apply")


@pytest.mark.parametrize(("end", "rows", "ended"), [(1.5, 100, "failed"), (0.9, 16, "new level")])
def test_a_loss_that_stays_high_has_risen_further_or_is_where_it_jumped_to(
    end: float, rows: int, ended: str
) -> None:
    spikes = begun()
    seen = [row(spikes, 12 + i, end)[0] for i in range(rows - 1)]
    assert seen == [None] * (rows - 2) + [ended]


def test_after_a_failure_none_begins_for_a_while() -> None:
    spikes = begun(window=200)
    assert [row(spikes, 12 + i, 2.0)[0] for i in range(99)][-1] == "failed"
    for at, rung in ((150, None), (400, "apply")):
        row(spikes, at, 1.0)
        spikes.skipped(1.0, at)
        assert row(spikes, at + 1, 1.0, step=at) == (None, rung)


def test_a_trial_within_which_losses_were_not_finite_until_a_rollback_has_failed() -> None:
    """Else the same losses after it would begin the next one, without end."""
    spikes = begun()
    nonfinite = Verdict("nonfinite", "loss", math.inf, 0.1)
    assert spikes.observe(nonfinite, math.nan, 12, 12) is None
    assert spikes.instead(nonfinite, math.nan, 12, limit=LIMIT, moved_far=lambda: False) is None
    assert spikes.on_trial
    spikes.rolled_back()
    spikes.skipped(1.0, 13)
    assert row(spikes, 14, 1.0, step=10) == (None, None)


def test_a_round_trip_continues_identically() -> None:
    spikes, other = begun(), OwnSpikes(1000)
    other.load_state_dict(json.loads(json.dumps(spikes.state_dict())))
    for i, loss in enumerate([2.0] * 5 + [0.1] * 8 + [1.0]):
        assert row(spikes, 12 + i, loss) == row(other, 12 + i, loss)
    assert other.on_trial


IMAGES, LABELS = (torch.tensor(part) for part in load_digits(return_X_y=True))


class Descent:
    """Gradient descent on one batch, at the edge of stability from some 100 steps on at a rate of 1.5."""

    def __init__(self, rate: float) -> None:
        torch.manual_seed(1)
        rows = torch.randperm(len(LABELS))[:200]
        self._x, self._y = IMAGES[rows].float() / 16, F.one_hot(LABELS[rows].long(), 10) * 2 - 0.2
        layers = [m for a, b in pairwise((64, 64, 64, 10)) for m in (nn.Linear(a, b), nn.ReLU())]
        self.model = nn.Sequential(*layers[:-1])
        self.optimizer = torch.optim.SGD(self.model.parameters(), lr=rate)

    def loss(self) -> Tensor:
        self.optimizer.zero_grad()
        return F.mse_loss(self.model(self._x), self._y)

    def guarded(
        self, attempts: int, *faults: FaultConfig, **config: Any
    ) -> tuple[GradientGuard, list[StepReport]]:
        guard = GradientGuard(self.model, self.optimizer, config)
        injector = FaultInjector(faults, model=self.model, optimizer=self.optimizer)
        reports = []
        for _ in range(attempts):
            injector.begin(guard.steps)
            guard.backward(self.loss())
            reports.append(guard.step())
        return guard, reports


def test_gradient_descent_beyond_the_edge_of_stability_costs_a_skip_and_no_rollback() -> None:
    guarded, plain = Descent(1.5), Descent(1.5)
    guard, reports = guarded.guarded(500)
    assert sum(report.verdict.kind == "spike" for report in reports) >= 5, "it does spike"
    assert sum(guard.totals.rollbacks.values()) == 0
    assert guard.totals.skips <= 1
    losses = []
    for _ in range(500):
        losses.append((loss := plain.loss()).item())
        loss.backward()
        plain.optimizer.step()
    assert median(report.loss for report in reports[-50:]) < 1.1 * median(losses[-50:])


def test_a_gradient_as_of_a_spike_that_ended_is_not_clipped() -> None:
    spikes = begun()
    assert spikes.usual(1.0) == 1.0
    spikes.note(12.0)
    for i in range(8):
        row(spikes, 12 + i, 0.1)
    assert [spikes.usual(typical) for typical in (None, 1.0, 9.0)] == [None, 8.0, 9.0]


@pytest.mark.parametrize("kind", ["bitflip_weight", "bitflip_moment", "lr_spike", "scaled_gradient"])
def test_a_fault_in_such_a_run_is_rolled_back(kind: str) -> None:
    fault = FaultConfig(kind=kind, step=300, factor=1e4)
    _, reports = Descent(1.5).guarded(400, fault)
    assert median(report.loss for report in reports[-20:]) < 0.04


def test_a_rate_that_grows_until_the_run_diverges_is_cut() -> None:
    fault = FaultConfig(kind="lr_drift", step=150, times=60, factor=1.05)
    _, reports = Descent(1.0).guarded(600, fault)
    assert median(report.loss for report in reports[-20:]) < 0.05


def test_a_trial_that_fails_beyond_the_budget_halts() -> None:
    fault = FaultConfig(kind="lr_drift", step=150, times=60, factor=1.05)
    with pytest.raises(GuardHalt, match="did not end; the budget is spent"):
        Descent(1.0).guarded(300, fault, budget={"rollbacks": 0})
