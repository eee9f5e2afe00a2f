"""Distances are in units of the learning rate: no schedule makes healthy weights look too far away."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
from torch import nn
from torch.optim.lr_scheduler import CosineAnnealingWarmRestarts, LambdaLR, LRScheduler

from guard import GradientGuard, GuardConfig
from guard.act.rates import UsedRate
from guard.observe.window_rate import WindowRate

LR = 1e-2


def rate_of(*rates: float, before: float = 0.0, whole: bool = False) -> float:
    window = WindowRate()
    window.load_state_dict({"window": [], "highest": before})
    for rate in rates:
        window.add(rate)
    return window.take(whole=whole)


def test_steps_in_random_directions_are_as_long_as_the_rate_says() -> None:
    generator = torch.Generator().manual_seed(0)
    rates = [1.0] * 3 + [0.01] * 22
    steps = torch.randn(25, 10_000, generator=generator) * torch.tensor(rates)[:, None]
    expected = rate_of(*rates) * math.sqrt(len(rates) * 10_000)
    assert float(steps.sum(0).norm()) == pytest.approx(expected, rel=0.02)


@pytest.mark.parametrize(
    ("rates", "before", "whole", "expected"),
    [
        ((0.1, 0.1, 0.1), 0.0, False, 0.1),
        ((100.0, 0.1, 0.1), 0.1, False, 0.1),  # wild: what it did stays visible
        ((100.0, 0.1, 0.1), 0.1, True, 100 / math.sqrt(3)),  # grown by the optimizer itself
        ((1.0, 0.0, 0.0, 0.0), 1.0, False, 0.5),  # the schedule falls, or starts again
        ((0.1,), 0.0, False, 0.1),
    ],
)
def test_a_wild_rate_does_not_count(
    rates: tuple[float, ...], before: float, whole: bool, expected: float
) -> None:
    assert rate_of(*rates, before=before, whole=whole) == pytest.approx(expected)


def test_a_wild_rate_is_never_usual() -> None:
    window = WindowRate()
    for rate in (0.1, 100.0, 0.1):
        window.add(rate)
    window.take(whole=False)
    assert window.state_dict() == {"window": [], "highest": 0.1}


def test_groups_count_by_their_elements() -> None:
    first, second = nn.Parameter(torch.zeros(30)), nn.Parameter(torch.zeros(10))
    optimizer = torch.optim.SGD([{"params": [first], "lr": 0.0}, {"params": [second], "lr": 0.4}])
    assert UsedRate(optimizer).overall(0.0) == pytest.approx(0.2)
    optimizer.param_groups[0]["lr"] = 0.4
    assert UsedRate(optimizer).overall(0.1) == 0.1, "one rate, as the cooldown has it"


def falls_at(step: int) -> Callable[[torch.optim.Optimizer], LRScheduler]:
    return lambda optimizer: LambdaLR(optimizer, lambda s: 1.0 if s < step else 1e-3)


def restarts_at(step: int) -> Callable[[torch.optim.Optimizer], LRScheduler]:
    return lambda optimizer: CosineAnnealingWarmRestarts(optimizer, step)


def first_group_falls(optimizer: torch.optim.Optimizer) -> LRScheduler:
    return LambdaLR(optimizer, [lambda s: 1.0 if s < 76 else 1e-3, lambda _: 1.0])


@pytest.mark.parametrize(
    "schedule",
    [falls_at(76), falls_at(101), restarts_at(99), first_group_falls],
    ids=["falls after one step of a window", "later", "starts again at the end of one", "falls in one group"],
)
@pytest.mark.parametrize("momentum", [False, True])
def test_no_schedule_is_an_anomaly(schedule: Callable[..., LRScheduler], momentum: bool) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(16, 32), nn.Tanh(), nn.Linear(32, 4))
    groups = [{"params": list(layer.parameters()), "lr": LR} for layer in (model[0], model[2])]
    groups = groups if schedule is first_group_falls else [{"params": list(model.parameters()), "lr": LR}]
    optimizer = torch.optim.SGD(groups, momentum=0.9) if momentum else torch.optim.AdamW(groups)
    guard = GradientGuard(model, optimizer, GuardConfig(rate="off"), scheduler=schedule(optimizer))
    target = torch.randn(16, 4)
    for _ in range(160):
        inputs = torch.randn(16, 16)
        labels = (inputs @ target + 2 * torch.randn(16, 4)).argmax(1)
        optimizer.zero_grad()
        guard.backward(nn.functional.cross_entropy(model(inputs), labels))
        guard.step()
    assert guard.totals.incidents == 0
