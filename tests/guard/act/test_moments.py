"""An outlier that is applied, clipped, leaves nothing in the moments: they are as before its step."""

from __future__ import annotations

import copy
from functools import partial
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

    def __init__(self, *, spike: bool, make: Any = torch.optim.Adam, lr: float = 0.003, **more: Any) -> None:
        torch.manual_seed(0)
        self.model = nn.Sequential(nn.Linear(64, 32), nn.ReLU(), nn.Linear(32, 10))
        self.optimizer = make(self.model.parameters(), lr=lr, **more)
        self.guard = GradientGuard(self.model, self.optimizer, {"on_suspect": "clip"})
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


class Named(torch.optim.Optimizer):
    """Of somebody else: RMSprop, whose state has the name that is given."""

    def __init__(self, params: Any, lr: float, name: str) -> None:
        super().__init__(params, {"lr": lr, "name": name})

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        del closure
        for group in self.param_groups:
            for weight in group["params"]:
                known = self.state[weight].setdefault(group["name"], torch.zeros_like(weight))
                known.lerp_(weight.grad.square(), 0.05)
                weight.addcdiv_(weight.grad, known.sqrt() + 1e-6, value=-group["lr"])


OPTIMIZERS: list[tuple[Any, dict[str, Any]]] = [
    (torch.optim.SGD, {"lr": 0.05, "momentum": 0.9, "nesterov": True}),
    (torch.optim.Adam, {"amsgrad": True, "fused": True}),
    (torch.optim.AdamW, {"amsgrad": True, "foreach": True}),
    (torch.optim.Adamax, {}),
    (torch.optim.NAdam, {}),
    (torch.optim.RAdam, {}),
    (torch.optim.RMSprop, {"centered": True, "momentum": 0.5, "lr": 3e-4}),
    (torch.optim.Adagrad, {"lr": 0.02}),
    (torch.optim.Adadelta, {"lr": 1.0}),
    (torch.optim.Adafactor, {"lr": 0.01}),
    (torch.optim.Rprop, {"lr": 1e-4, "step_sizes": (1e-6, 1e-3)}),
    (Named, {"name": "v", "lr": 3e-4}),
]
COUNTERS = {"step", "mu_product"}


@pytest.mark.parametrize(("make", "options"), OPTIMIZERS)
def test_no_moment_of_any_optimizer_learns_from_an_outlier(make: Any, options: dict[str, Any]) -> None:
    run = Run(spike=True, make=make, **options).train(SPIKE)
    weights, before = copy.deepcopy(run.model.state_dict()), run.moments()
    assert run.train(1).reports[-1].action == "clipped"
    assert run.reports[-1].verdict.kind == "suspect"
    assert any(not torch.equal(weights[name], now) for name, now in run.model.state_dict().items())
    for old, new in zip(before, run.moments(), strict=True):
        assert old.keys() == new.keys()
        assert all(torch.equal(old[name], new[name]) for name in old.keys() - COUNTERS)
        assert all((new[name] != old[name]).all() for name in old.keys() & COUNTERS)
    assert run.train(30).reports[-1].loss < 2 * fmean(r.loss for r in run.reports[SPIKE - 10 : SPIKE])


@pytest.mark.parametrize(
    "make", [torch.optim.Adam, torch.optim.Adafactor, partial(torch.optim.SGD, momentum=0.9)]
)
def test_a_parameter_that_joins_with_an_outlier_has_no_state_after_it(make: Any) -> None:
    old, new = nn.Parameter(torch.ones(3, 3)), nn.Parameter(torch.ones(3, 3))
    optimizer = make([old, new], lr=0.1)
    old.grad = torch.ones(3, 3)
    optimizer.step()
    new.grad = torch.full((3, 3), 1e6)
    kept_moments(optimizer, optimizer.step)
    assert new not in optimizer.state
    assert (new < 1.0).all()
    new.grad = torch.ones(3, 3)
    optimizer.step()
    assert all(not torch.is_tensor(m) or m.max() <= 1.0 for m in optimizer.state[new].values())


def test_a_state_under_names_that_are_not_known_is_left_alone_and_said_once(caplog: Any) -> None:
    run = Run(spike=True, make=Named, name="gradients_squared", lr=3e-4).train(SPIKE)
    before = run.moments()[-1]["gradients_squared"]
    assert run.train(1).reports[-1].action == "clipped"
    assert not torch.equal(before, run.moments()[-1]["gradients_squared"])
    lines = [r.getMessage() for r in caplog.records if "moments" in r.getMessage()]
    assert lines == [
        "an outlier was applied and may stay in the moments of Named: "
        "nothing is known of gradients_squared in its state"
    ]


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
