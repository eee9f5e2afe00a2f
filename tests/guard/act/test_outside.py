"""A loop that gives new weights between two steps is left alone: a fault would not come back like that."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from guard import FaultConfig, FaultInjector, GradientGuard, StepReport
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


class Adapted(nn.Module):
    """A frozen layer with an adapter of rank 4 (LoRA), which may be merged into it."""

    def __init__(self) -> None:
        super().__init__()
        self.base = nn.Linear(64, 64).requires_grad_(False)
        self.down, self.up = nn.Parameter(0.1 * torch.randn(4, 64)), nn.Parameter(torch.zeros(64, 4))

    def weight(self) -> torch.Tensor:
        return self.base.weight + self.up @ self.down

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return F.linear(x, self.weight(), self.base.bias)

    @torch.no_grad()
    def merge(self) -> None:
        self.base.weight.add_(self.up @ self.down)
        self.up.zero_()


def test_an_adapter_that_was_merged_is_never_added_a_second_time_by_a_rollback() -> None:
    torch.manual_seed(0)
    model = Adapted()
    optimizer = torch.optim.AdamW([model.down, model.up], lr=3e-3)
    guard = GradientGuard(model, optimizer)
    fault = FaultConfig(kind="lr_spike", step=66, factor=1e5)
    faults, weights = FaultInjector([fault], model=model, optimizer=optimizer), {}
    target, returns = torch.randn(64, 64), []
    for attempt in range(90):
        faults.begin(guard.steps)
        x = torch.randn(32, 64)
        optimizer.zero_grad()
        guard.backward(F.mse_loss(model(x), x @ target / 8))
        report = guard.step()
        if report.action == "rolled_back":
            returns.append(report.step)
            assert torch.allclose(model.weight(), weights[report.step], atol=1e-5)
        if attempt == 60:
            model.merge()
        weights[guard.steps] = model.weight().detach().clone()
    assert returns
    assert min(returns) > 60, "of the snapshot before the merge the frozen layer is not known"
