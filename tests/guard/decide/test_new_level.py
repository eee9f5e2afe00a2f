"""A change on purpose is accepted, and an explosion is not."""

from __future__ import annotations

import copy
import json
import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from sklearn.datasets import load_digits
from torch import Tensor, nn
from torch.nn import functional as F

from guard import GradientGuard, GuardConfig, GuardError, StepReport
from guard.decide.new_level import NewLevel
from guard.records import Verdict

AT = 150
DIGITS = tuple(torch.tensor(part) for part in load_digits(return_X_y=True))
Loss = Callable[[GradientGuard, nn.Module, int], Tensor]


def digits(rows: int) -> tuple[Tensor, Tensor]:
    ids = torch.randint(len(DIGITS[1]), (rows,))
    return DIGITS[0][ids].float() / 16, DIGITS[1][ids]


def train(loss: Loss, attempts: int = 350, **options: Any) -> tuple[GradientGuard, list[StepReport]]:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 10))
    optimizer = torch.optim.AdamW(model.parameters(), lr=2e-3)
    guard = GradientGuard(model, optimizer, **options)
    reports = []
    for attempt in range(attempts):
        optimizer.zero_grad()
        guard.backward(loss(guard, model, attempt))
        reports.append(guard.step())
    return guard, reports


def smoothing(size: float, *, by_steps: bool = False, announced: bool = False) -> Loss:
    def loss(guard: GradientGuard, model: nn.Module, attempt: int) -> Tensor:
        if announced and attempt == AT:
            guard.expect_change("label smoothing on")
        on = (guard.steps if by_steps else attempt) >= AT
        x, y = digits(256)
        return F.cross_entropy(model(x), y, label_smoothing=size if on else 0.0)

    return loss


def actions(reports: list[StepReport], action: str) -> int:
    return sum(r.action == action for r in reports)


@pytest.mark.parametrize("by_steps", [False, True])
@pytest.mark.parametrize("size", [0.02, 0.05, 0.2])
def test_a_change_on_purpose_of_any_size_is_accepted(size: float, by_steps: bool) -> None:
    guard, reports = train(smoothing(size, by_steps=by_steps))
    assert actions(reports, "rolled_back") <= 2
    assert actions(reports, "skipped") <= 18
    assert all(r.applied for r in reports[-30:])
    assert sum(r.verdict.kind == "drift" for r in reports[AT:]) <= 1
    left = guard.config.budget.rollbacks - guard.totals.rollbacks["memory"]
    assert left >= 3


def test_it_is_reported_once_as_a_new_level_and_costs_no_budget(tmp_path: Path) -> None:
    journal = tmp_path / "incidents.jsonl"
    guard, _ = train(smoothing(0.05, by_steps=True), journal=journal)
    rows = [json.loads(line) for line in journal.read_text().splitlines()]
    accepted = [row for row in rows if "stays where it jumped to" in row.get("reason", "")]
    assert [(row["verdict"], row["signal"]) for row in accepted] == [("drift", "loss")]
    assert guard._parts.decider.ladder.rollbacks_left(guard.attempts) == guard.config.budget.rollbacks
    assert guard._state.cooldown.strengths()["lr_scale"] == 1.0


def test_an_announced_change_costs_nothing_and_is_journaled(tmp_path: Path) -> None:
    journal = tmp_path / "incidents.jsonl"
    guard, reports = train(smoothing(0.2, announced=True), journal=journal)
    assert all(r.applied for r in reports)
    (row,) = [json.loads(line) for line in journal.read_text().splitlines()]
    assert (row["type"], row["reason"], row["step"]) == ("change", "label smoothing on", AT)
    assert guard.totals.changes == 1
    with pytest.raises(GuardError, match="at least 1 step"):
        guard.expect_change("never", steps=0)


def test_while_a_change_is_expected_the_non_finite_and_the_overwhelming_count() -> None:
    def loss(guard: GradientGuard, model: nn.Module, attempt: int) -> Tensor:
        if attempt == AT:
            guard.expect_change("harder data")
        x, y = digits(256)
        factor = {AT + 10: float("nan"), AT + 20: 1e6}.get(attempt, 3.0 if attempt >= AT else 1.0)
        return F.cross_entropy(model(x), y) * factor

    _, reports = train(loss, AT + 40)
    assert [i for i, r in enumerate(reports) if not r.applied] == [AT + 10, AT + 20]


def test_a_rollback_keeps_what_was_announced() -> None:
    """The restored levels are of before the change; it still holds."""

    def loss(guard: GradientGuard, model: nn.Module, attempt: int) -> Tensor:
        if attempt == 155:
            guard.expect_change("twice the loss")
        x, y = digits(256)
        return (
            F.cross_entropy(model(x), y) * (2.0 if attempt >= 155 else 1.0) * (1e6 if attempt == 160 else 1)
        )

    _, reports = train(loss, 200)
    assert [i for i, r in enumerate(reports) if not r.applied] == [160]
    assert reports[160].action == "rolled_back"


def test_a_rate_that_jumps_with_the_step_is_not_accepted() -> None:
    """It comes back at the same step too; what it does to the weights shows in the rate."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 10))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda k: 1 if k < 100 else 400)
    config = GuardConfig.model_validate({"budget": {"rollbacks": 100}})
    guard, reports = GradientGuard(model, optimizer, config, scheduler=schedule), []
    for _ in range(300):
        x, y = digits(64)
        optimizer.zero_grad()
        guard.backward(F.cross_entropy(model(x), y))
        reports.append(guard.step())
    assert actions(reports, "rolled_back") >= 3
    assert not any(r.incident and "same level" in r.incident.reason for r in reports)


def test_what_comes_back_on_calm_weights_at_once_is_the_data() -> None:
    spike = Verdict("spike", "loss", 8.0, 0.1)
    for first, accepted in ((1.5, True), (0.1, False)):
        level = NewLevel()
        for attempt in (100, 104, 108):
            instead = level.instead(spike, attempt=attempt, step=90 + attempt % 7, rate_rose=True)
            if instead is None:
                level.rolled_back(spike, 1.0, attempt=attempt, step=90 + attempt % 7, rate_rose=True)
            for row, ratio in enumerate((first, 1.5, 1.5)):
                level.observe(ratio, 1.0, attempt + row, 90, normal=True, changed=False)
        assert (instead is not None and instead.new_level) == accepted


def test_a_round_trip_continues_identically() -> None:
    level = NewLevel()
    level.rolled_back(Verdict("spike", "loss", 8.0, 0.1), 2.0, attempt=5, step=4, rate_rose=False)
    level.observe(1.5, 2.0, 6, 4, normal=True, changed=False)
    other = NewLevel()
    other.load_state_dict(json.loads(json.dumps(level.state_dict())))
    assert other.state_dict() == level.state_dict()


def loaded(adopts: bool) -> tuple[list[StepReport], float, float]:
    """An earlier checkpoint of the model is loaded at attempt 120; the loss before and after."""
    torch.manual_seed(0)
    model = nn.Linear(64, 10)
    x, y = torch.randn(256, 64), torch.randint(10, (256,))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.5)
    guard, reports, losses = GradientGuard(model, optimizer), [], []
    for attempt in range(180):
        if attempt == 20:
            kept = copy.deepcopy(model.state_dict())
        if attempt == 120:
            model.load_state_dict(kept)
            if adopts:
                guard.adopt_state()
        optimizer.zero_grad()
        loss = F.cross_entropy(model(x), y) * (1e9 if attempt == 150 else 1.0)
        guard.backward(loss)
        reports.append(guard.step())
        losses.append(loss.item())
    return reports, losses[22], losses[125]


def test_weights_that_were_loaded_are_not_rolled_back() -> None:
    reports, then, later = loaded(adopts=False)
    assert sum(not r.applied for r in reports[:150]) <= 1
    assert later > then - 0.2
    assert reports[150].action == "rolled_back"
    assert (reports[150].rolled_back_to or 0) >= 119


def test_the_first_weights_that_are_loaded_again_as_for_another_fold_are_not_rolled_back() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(16, 32), nn.ReLU(), nn.Linear(32, 4))
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    first = copy.deepcopy((model.state_dict(), optimizer.state_dict()))
    guard, reports, teacher = GradientGuard(model, optimizer), [], torch.randn(16, 4)
    for attempt in range(240):
        if attempt % 80 == 0:
            model.load_state_dict(first[0])
            optimizer.load_state_dict(first[1])
        x = torch.randn(32, 16)
        optimizer.zero_grad()
        guard.backward(F.cross_entropy(model(x), (x @ teacher).argmax(1)))
        reports.append(guard.step())
    assert actions(reports, "rolled_back") == 0
    assert actions(reports, "skipped") <= 2


def test_an_adopted_state_is_never_rolled_back_beyond() -> None:
    reports, then, later = loaded(adopts=True)
    assert [i for i, r in enumerate(reports) if not r.applied] == [150]
    assert later > then - 0.2
    assert (reports[150].rolled_back_to or 0) >= 120


def test_weights_that_are_damaged_in_memory_are_still_rolled_back() -> None:
    def loss(_: GradientGuard, model: nn.Module, attempt: int) -> Tensor:
        if attempt == AT:
            with torch.no_grad():
                for parameter in model.parameters():
                    parameter.mul_(30.0)
        x, y = digits(256)
        return F.cross_entropy(model(x), y)

    _, reports = train(loss, 200)
    assert actions(reports[AT : AT + 5], "rolled_back") == 1


def test_a_loss_that_is_hardly_judged_is_announced_once(caplog: pytest.LogCaptureFixture) -> None:
    def loss(_: GradientGuard, model: nn.Module, __: int) -> Tensor:
        x, y = digits(256)
        return F.cross_entropy(model(x), y) * torch.randn(()).exp()

    with caplog.at_level(logging.WARNING, logger="guard"):
        _, reports = train(loss, 120)
    assert sum("an alarm needs x" in record.message for record in caplog.records) == 1
    measured = [r.alarm_factor for r in reports if r.alarm_factor is not None]
    assert measured[-1] > 10
