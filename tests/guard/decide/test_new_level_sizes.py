"""A change on purpose of any size is accepted at few lost steps; weights that break are not."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from guard import GradientGuard, StepReport
from guard.decide.new_level import NewLevel
from guard.records import Verdict
from tests.guard.decide.test_new_level import AT, DIGITS, Loss, actions, train

MOST_SKIPPED = 12
"""Three before the first rollback, eight after it, and one by chance."""


def second_term(size: float, *, by_steps: bool) -> Loss:
    """From a step on a term joins that makes the loss ``size`` times as large."""
    weight: list[float] = []

    def loss(guard: GradientGuard, model: nn.Module, attempt: int) -> Tensor:
        ids = torch.randint(len(DIGITS[1]), (256,))
        out = model(DIGITS[0][ids].float() / 16)
        first, second = F.cross_entropy(out, DIGITS[1][ids]), (out.mean(1) - 3.0).square().mean()
        if (guard.steps if by_steps else attempt) < AT:
            return first
        if not weight:
            weight.append((size - 1) * first.item() / second.item())
        return first + weight[0] * second

    return loss


def longer(times: int) -> Loss:
    """Sequences are ``times`` as long from a step on, and the loss is the sum over their places."""

    def loss(guard: GradientGuard, model: nn.Module, _: int) -> Tensor:
        places = 4 * (times if guard.steps >= AT else 1)
        ids = torch.randint(len(DIGITS[1]), (32 * places,))
        return F.cross_entropy(model(DIGITS[0][ids].float() / 16), DIGITS[1][ids]) * places

    return loss


def assert_accepted(reports: list[StepReport], journal: Path) -> None:
    """The run goes on at the new level, which is reported once where it is not learned sooner."""
    assert actions(reports, "rolled_back") <= 2
    assert actions(reports, "skipped") <= MOST_SKIPPED
    assert all(report.applied for report in reports[-100:])
    rows = [json.loads(line) for line in journal.read_text().splitlines()] if journal.exists() else []
    accepted = [row for row in rows if "the same level" in row.get("reason", "")]
    assert len(accepted) <= 1
    assert [row["verdict"] for row in accepted] == ["drift"] * len(accepted)
    acted = [report.action for report in reports if not report.applied]
    if acted.count("rolled_back") == 2 or acted.count("skipped") > 7:
        assert len(accepted) == 1


@pytest.mark.parametrize("by_steps", [False, True])
@pytest.mark.parametrize("size", [1.15, 1.4, 2.0, 5.0, 20.0, 100.0])
def test_a_second_term_of_any_size_is_accepted(size: float, by_steps: bool, tmp_path: Path) -> None:
    journal = tmp_path / "incidents.jsonl"
    guard, reports = train(second_term(size, by_steps=by_steps), journal=journal)
    assert_accepted(reports, journal)
    left = guard._parts.decider.ladder.rollbacks_left(guard.attempts)
    assert left >= guard.config.budget.rollbacks - 1


@pytest.mark.parametrize("times", [2, 8, 32])
def test_longer_sequences_are_accepted(times: int, tmp_path: Path) -> None:
    journal = tmp_path / "incidents.jsonl"
    _, reports = train(longer(times), journal=journal)
    assert_accepted(reports, journal)


@pytest.mark.parametrize("factor", [3.0, 10.0, 100.0])
def test_weights_that_break_are_rolled_back_and_no_new_level(factor: float) -> None:
    def loss(_: GradientGuard, model: nn.Module, attempt: int) -> Tensor:
        if attempt == AT:
            with torch.no_grad():
                for parameter in model.parameters():
                    parameter.mul_(-factor)
        ids = torch.randint(len(DIGITS[1]), (256,))
        return F.cross_entropy(model(DIGITS[0][ids].float() / 16), DIGITS[1][ids])

    _, reports = train(loss, AT + 60)
    assert 1 <= actions(reports[AT : AT + 4], "rolled_back") <= 2
    assert actions(reports[AT + 4 :], "rolled_back") == 0
    assert all(report.verdict.kind != "drift" for report in reports)


@pytest.mark.parametrize("count", [1, 2, 5])
def test_a_few_bad_batches_are_no_new_level(count: int) -> None:
    def loss(_: GradientGuard, model: nn.Module, attempt: int) -> Tensor:
        ids = torch.randint(len(DIGITS[1]), (256,))
        labels = DIGITS[1][ids]
        labels = labels[torch.randperm(256)] if AT <= attempt < AT + count else labels
        return F.cross_entropy(model(DIGITS[0][ids].float() / 16), labels)

    _, reports = train(loss, AT + 60)
    assert not any(report.applied for report in reports[AT : AT + count])
    assert all(report.applied for report in reports[AT + count + 1 :])
    assert all(report.verdict.kind != "drift" for report in reports)


@pytest.mark.parametrize(("rows", "step", "accepted"), [(7, 4, False), (8, 4, True), (8, 5, False)])
def test_what_never_left_healthy_weights_is_the_data(rows: int, step: int, accepted: bool) -> None:
    """Eight batches since the rollback, all high, and no step applied between them."""
    spike, level = Verdict("spike", "loss", 40.0, 0.1), NewLevel()
    level.rolled_back(spike, 2.0, attempt=100, step=9, rate_rose=False)
    for row in range(rows):
        level.observe(8.0, 2.0, 101 + row, step if row == rows - 1 else 4, normal=True, changed=False)
    instead = level.instead(spike, attempt=100 + rows, step=step, rate_rose=False)
    assert (instead is not None and instead.new_level) == accepted
