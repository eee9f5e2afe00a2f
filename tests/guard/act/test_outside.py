"""A loop that gives new weights between two steps is left alone: a fault would not come back like that."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from guard import GradientGuard, StepReport
from guard.act.outside import OutsideChanges

EVERY = 150


def attempts(outside: OutsideChanges, count: int) -> list[int]:
    """What is found in attempts between which nothing happens."""
    found = []
    for _ in range(count):
        found.append(outside.found())
        outside.watch()
    return found


def write(parameters: list[nn.Parameter]) -> None:
    with torch.no_grad():
        for parameter in parameters:
            parameter.mul_(1.0)


def test_weights_that_are_all_written_are_found_at_once_and_some_from_the_second_time_on() -> None:
    weights = [nn.Parameter(torch.ones(2)) for _ in range(40)]
    outside = OutsideChanges(weights)
    assert attempts(outside, 20) == [0] * 20
    write(weights[3:9])
    assert attempts(outside, 20) == [0] * 20
    write(weights[3:9])
    assert attempts(outside, 20) == [2] + [0] * 19
    outside = OutsideChanges(weights)
    assert attempts(outside, 20) == [0] * 20
    write(weights)
    assert attempts(outside, 1) == [1]


def test_weights_that_are_written_all_the_time_are_found_never() -> None:
    weights = [nn.Parameter(torch.ones(2)) for _ in range(3)]
    outside = OutsideChanges(weights)
    for i in range(40):
        write(weights[: 1 + i % 3])
        assert attempts(outside, 4) == [0] * 4


def train(change: Callable[[nn.Sequential, torch.optim.Optimizer], None]) -> tuple[list[StepReport], float]:
    """A classifier whose loop changes something of it every 150 steps; the reports, the accuracy. A halt
    raises."""
    torch.manual_seed(1)
    model = nn.Sequential(nn.Linear(16, 64), nn.ReLU(), nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 10))
    optimizer = torch.optim.AdamW(model.parameters(), lr=2e-3)
    guard, teacher, reports = GradientGuard(model, optimizer), torch.randn(16, 10), []
    for i in range(1300):
        if i and i % EVERY == 0:
            change(model, optimizer)
        x = torch.randn(32, 16)
        optimizer.zero_grad()
        guard.backward(F.cross_entropy(model(x), (x @ teacher).argmax(1)))
        reports.append(guard.step())
    x = torch.randn(2000, 16)
    return reports, (model(x).argmax(1) == (x @ teacher).argmax(1)).float().mean().item()


def new_head(model: nn.Sequential, _: torch.optim.Optimizer) -> None:
    model[4].reset_parameters()  # type: ignore[operator]


def new_head_and_moments(model: nn.Sequential, optimizer: torch.optim.Optimizer) -> None:
    new_head(model, optimizer)
    for parameter in model[4].parameters():
        optimizer.state.pop(parameter, None)


def new_first_layer(model: nn.Sequential, _: torch.optim.Optimizer) -> None:
    model[0].reset_parameters()  # type: ignore[operator]


@pytest.mark.parametrize("change", [new_head, new_head_and_moments, new_first_layer])
def test_a_layer_that_gets_new_weights_now_and_then_costs_one_rollback_in_all(
    change: Callable[[nn.Sequential, torch.optim.Optimizer], None],
) -> None:
    reports, accuracy = train(change)
    assert sum(report.action == "rolled_back" for report in reports) <= 1
    assert sum(report.applied for report in reports) >= 0.98 * len(reports)
    assert accuracy > 0.75
