"""Losses that swing by design: tasks by turns, stages that return, gradients that are zero for a while."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from guard import GradientGuard, StepReport

Scale = Callable[[int], float]


def train(scale: Scale, attempts: int, *, summed_from: int | None = None) -> list[StepReport]:
    """A small classifier; the loss of attempt i counts ``scale(i)`` times. A halt raises."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(20, 64), nn.ReLU(), nn.Linear(64, 5))
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    guard, teacher = GradientGuard(model, optimizer), torch.randn(20, 5)
    reports = []
    for i in range(attempts):
        x = torch.randn(64, 20)
        optimizer.zero_grad()
        reduction = "mean" if summed_from is None or i < summed_from else "sum"
        guard.backward(F.cross_entropy(model(x), (x @ teacher).argmax(1), reduction=reduction) * scale(i))
        reports.append(guard.step())
    return reports


def count(reports: list[StepReport], action: str) -> int:
    return sum(report.action == action for report in reports)


def test_two_losses_by_turns_are_learned_from_the_first_steps() -> None:
    reports = train(lambda i: 50.0 if i % 2 else 1.0, 200)
    assert count(reports, "rolled_back") == 0
    assert count(reports, "skipped") <= 3


def test_one_tiny_loss_at_first_rolls_nothing_back() -> None:
    reports = train(lambda i: 1.0 if i else 1e-2, 60)
    assert count(reports, "rolled_back") == 0
    assert count(reports, "skipped") <= 3


def test_stages_that_return_never_spend_the_budget() -> None:
    """The third return of the stage would be beyond the budget if each counted."""
    reports = train(lambda i: 20.0 if (i // 50) % 2 else 1.0, 800)
    assert count(reports, "applied") + count(reports, "clipped") >= 0.9 * len(reports)


def test_gradients_that_are_zero_for_a_while_show_no_level_of_the_update() -> None:
    reports = train(lambda i: 0.0 if i < 200 else 1e-3 * min(1.0, (i - 199) / 50), 500)
    assert count(reports, "rolled_back") <= 1
    assert all(report.applied for report in reports[300:])


def test_after_an_accepted_change_the_clip_follows_the_new_level() -> None:
    reports = train(lambda _: 1.0, 400, summed_from=150)
    accepted = next(i for i, report in enumerate(reports) if report.verdict.kind == "drift")
    assert count(reports[accepted:], "clipped") <= 0.05 * len(reports[accepted:])


def test_tasks_in_blocks_never_spend_the_budget() -> None:
    """25 batches of a regression with large losses, 25 of a classification, and so on."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(16, 64), nn.ReLU(), nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 11))
    guard, teacher = GradientGuard(model, torch.optim.AdamW(model.parameters(), lr=2e-3)), torch.randn(16, 10)
    reports = []
    for i in range(2000):
        x = torch.randn(32, 16)
        model.zero_grad()
        if i // 25 % 2:
            loss = F.cross_entropy(model(x)[:, :10], (x @ teacher).argmax(1))
        else:
            loss = F.mse_loss(10 * model(x)[:, 10], 30 * x[:, 0])
        guard.backward(loss)
        reports.append(guard.step())
    assert count(reports, "rolled_back") <= 3
    assert count(reports, "skipped") <= 0.03 * len(reports)


@pytest.mark.parametrize(("times", "batches", "seed"), [(5, 16, 1), (8, 16, 0), (2, 16, 0)])
def test_batches_that_come_several_times_in_a_row_never_spend_the_budget(
    times: int, batches: int, seed: int
) -> None:
    """As in PPO's epochs over a rollout: the loss of a memorised batch is low, that of the next is not."""
    torch.manual_seed(seed)
    model = nn.Sequential(nn.Linear(20, 64), nn.ReLU(), nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 5))
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    data = [(torch.randn(16, 20), torch.randint(0, 5, (16,))) for _ in range(batches)]
    guard, reports = GradientGuard(model, optimizer), []
    for i in range(800):
        x, y = data[i // times % batches]
        optimizer.zero_grad()
        guard.backward(F.cross_entropy(model(x), y))
        reports.append(guard.step())
    assert count(reports, "rolled_back") <= 2
    assert count(reports, "skipped") <= 0.03 * len(reports)


def test_a_large_loss_on_a_batch_now_and_then_is_never_rolled_back() -> None:
    """A rare second task: on healthy weights one batch alone explains any loss, however large."""
    reports = train(lambda i: 1000.0 if i % 50 == 49 else 1.0, 1000)
    assert count(reports, "rolled_back") == 0
    assert 1 <= count(reports, "skipped") <= 10
    assert all(report.applied for report in reports[600:])


def test_a_network_that_chases_its_own_copy_settles_into_its_habit() -> None:
    """The loss of deep Q-learning rises whenever the target network is synchronized."""
    torch.manual_seed(0)
    make = partial(nn.Sequential, nn.Linear(4, 32), nn.Tanh())
    model, target = make(nn.Linear(32, 2)), make(nn.Linear(32, 2))
    guard = GradientGuard(model, torch.optim.Adam(model.parameters(), lr=1e-3))
    reports = []
    for i in range(1200):
        if i % 100 == 0:
            target.load_state_dict(model.state_dict())
        states, moves = torch.randn(32, 4), torch.randint(2, (32,))
        with torch.no_grad():
            best = target(states + 0.1 * torch.randn(32, 4)).max(1).values
        goal = (moves == (states[:, 0] > 0)).float() + 0.97 * best
        model.zero_grad()
        guard.backward(F.smooth_l1_loss(model(states).gather(1, moves[:, None])[:, 0], goal))
        reports.append(guard.step())
    assert count(reports, "rolled_back") <= 2
    assert count(reports[300:], "rolled_back") == 0
    assert count(reports[300:], "skipped") <= 9
