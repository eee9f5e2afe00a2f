"""An outlier that is applied, clipped, leaves nothing in the moments: they are as before its step."""

from __future__ import annotations

import copy
from statistics import fmean
from typing import Any

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from guard import GradientGuard, StepReport
from guard.act.moments import kept_moments
from tests.guard.decide.test_new_level import DIGITS

SPIKE = 60


class Run:
    """A network on digits with Adam; at one step the gradient of its last bias is far too large."""

    def __init__(self, *, spike: bool, **options: Any) -> None:
        torch.manual_seed(0)
        self.model = nn.Sequential(nn.Linear(64, 32), nn.ReLU(), nn.Linear(32, 10))
        self.optimizer = torch.optim.Adam(self.model.parameters(), lr=0.003)
        self.guard = GradientGuard(self.model, self.optimizer, {"on_suspect": "clip"}, **options)
        self.batches, self.spike = torch.Generator().manual_seed(0), spike
        self.reports: list[StepReport] = []

    def train(self, attempts: int) -> Run:
        for _ in range(attempts):
            ids = torch.randint(1797, (64,), generator=self.batches)
            self.optimizer.zero_grad()
            self.guard.backward(F.cross_entropy(self.model(DIGITS[0][ids].float() / 16), DIGITS[1][ids]))
            if self.spike and len(self.reports) == SPIKE:
                self.model[2].bias.grad.mul_(1000.0)
            self.reports.append(self.guard.step())
        return self

    def moments(self) -> list[dict[str, Any]]:
        return [copy.deepcopy(state) for state in self.optimizer.state.values()]


def test_an_outlier_that_is_clipped_moves_the_weights_and_leaves_the_moments() -> None:
    run = Run(spike=True).train(SPIKE)
    weights, before = copy.deepcopy(run.model.state_dict()), run.moments()
    assert run.train(1).reports[-1].verdict.kind == "suspect"
    assert run.reports[-1].action == "clipped"
    assert not all(torch.equal(weights[name], now) for name, now in run.model.state_dict().items())
    for old, new in zip(before, run.moments(), strict=True):
        assert torch.equal(old["exp_avg"], new["exp_avg"])
        assert torch.equal(old["exp_avg_sq"], new["exp_avg_sq"])
        assert new["step"] == old["step"] + 1


def test_the_fifty_steps_after_it_are_no_worse_than_without_it() -> None:
    spiked, clean = (Run(spike=spike).train(SPIKE + 51) for spike in (True, False))
    after = [fmean(r.loss for r in run.reports[SPIKE + 1 :]) for run in (spiked, clean)]
    assert after[0] < 1.02 * after[1]
    for ours, theirs in zip(spiked.moments(), clean.moments(), strict=True):
        ratio = ours["exp_avg_sq"].sum() / theirs["exp_avg_sq"].sum()
        assert 0.5 < ratio < 2.0


@pytest.mark.parametrize("fused", [False, True])
def test_what_is_no_moment_is_left_to_the_optimizer(fused: bool) -> None:
    weight = nn.Parameter(torch.ones(3))
    optimizer = torch.optim.SGD([weight], lr=0.1, momentum=0.9, fused=fused)
    weight.grad = torch.ones(3)
    optimizer.step()
    optimizer.state[weight]["z"] = torch.zeros(3)

    def step() -> None:
        optimizer.step()
        optimizer.state[weight]["z"].add_(1.0)

    kept_moments(optimizer, step)
    assert optimizer.state[weight]["momentum_buffer"].tolist() == [1.0, 1.0, 1.0]
    assert optimizer.state[weight]["z"].tolist() == [1.0, 1.0, 1.0]
    assert weight.tolist() == pytest.approx([0.71] * 3)
