"""The rate that is noted is the one the optimizer used, whatever else hooks into its step."""

from __future__ import annotations

import gc
import weakref

import pytest
import torch
from torch import nn
from torch.optim import SGD, Optimizer

from guard import GradientGuard, GuardConfig
from guard.act.rates import UsedRate


def optimizer() -> SGD:
    weight = nn.Parameter(torch.ones(3))
    weight.grad = torch.ones(3)
    return SGD([weight], lr=0.1)


def halve(optimizer: Optimizer, *_: object) -> None:
    optimizer.param_groups[0]["lr"] /= 2


def test_hooks_that_come_later_change_the_rate_that_is_noted() -> None:
    sgd = optimizer()
    rate = UsedRate(sgd)
    rate.expect_step()
    sgd.step()
    assert rate.last == 0.1
    sgd.register_step_pre_hook(halve)
    rate.expect_step()
    sgd.step()
    assert rate.last == 0.05
    assert len(sgd._optimizer_step_pre_hooks) == 2, "one of its own, not one a step"


def test_a_step_that_is_not_the_guards_is_not_noted() -> None:
    sgd = optimizer()
    rate = UsedRate(sgd)
    rate.expect_step()
    sgd.step()
    rate.expects = False
    sgd.param_groups[0]["lr"] = 7.0
    sgd.step()
    assert rate.last == 0.1


def test_a_newer_one_takes_the_place_of_an_older_one_and_back() -> None:
    sgd = optimizer()
    older, newer = UsedRate(sgd), UsedRate(sgd)
    for rate, value in ((older, 0.3), (newer, 0.2), (older, 0.1)):
        sgd.param_groups[0]["lr"] = value
        rate.expect_step()
        sgd.step()
        assert rate.last == value
        assert len(sgd._optimizer_step_pre_hooks) == 1


def test_an_optimizer_keeps_none_of_them_alive() -> None:
    sgd = optimizer()
    rate = UsedRate(sgd)
    rate.expect_step()
    seen = weakref.ref(rate)
    del rate
    gc.collect()
    assert seen() is None
    sgd.step()


def test_a_rate_that_was_cut_stays_cut_in_mode_deferred() -> None:
    torch.manual_seed(0)
    model = nn.Linear(2, 1)
    adam = torch.optim.AdamW(model.parameters(), lr=0.1, fused=True)
    guard = GradientGuard(model, adam, GuardConfig(mode="deferred"))
    guard._state.cooldown.rate_factor = 0.25  # as loaded from a run in mode exact, with rate: act
    rates = []
    for _ in range(40):
        adam.zero_grad()
        guard.backward(model(torch.randn(16, 2)).square().mean())
        report = guard.step()
        if not report.pending:
            rates.append(report.learning_rate)
    assert rates == pytest.approx([0.025] * len(rates))
