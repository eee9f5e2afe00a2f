"""Mixed precision: the scaler's overflows are its own business, our skips never touch its scale."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import nn

from guard import GradientGuard, GuardConfig
from tests.guard.loops import differences, network

SCALE = 1024.0


class Bench:
    """A model, its scaler and a guard; ``attempt`` multiplies the loss, or one gradient."""

    def __init__(self, *, scale: float = SCALE, growth_interval: int = 1000, **config: Any) -> None:
        self.model = network()
        self.optimizer = torch.optim.AdamW(self.model.parameters(), lr=1e-3)
        self.scaler = torch.amp.GradScaler("cpu", init_scale=scale, growth_interval=growth_interval)
        settings = GuardConfig.model_validate(config)
        self.guard = GradientGuard(self.model, self.optimizer, settings, scaler=self.scaler)
        self.factor = 1.0
        self.model[0].weight.register_hook(lambda gradient: gradient * self.factor)

    def attempt(self, loss: float = 1.0, gradient: float = 1.0) -> Any:
        self.factor = gradient
        self.optimizer.zero_grad()
        generator = torch.Generator().manual_seed(self.guard.attempts)
        self.guard.backward(self.model(torch.randn(32, 8, generator=generator)).square().mean() * loss)
        return self.guard.step()

    def state(self) -> dict[str, Any]:
        optimizer = [{k: v.clone() for k, v in s.items()} for s in self.optimizer.state.values()]
        return {"model": {k: v.clone() for k, v in self.model.state_dict().items()}, "optimizer": optimizer}

    def scaling(self) -> tuple[float, int]:
        state = self.scaler.state_dict()
        return state["scale"], state["_growth_tracker"]


def test_a_scaled_run_equals_the_plain_scaled_loop() -> None:
    guarded = Bench(growth_interval=7)
    torch.manual_seed(3)
    for _ in range(30):
        assert guarded.attempt().action == "applied"
    plain = Bench(growth_interval=7, mode="off")
    torch.manual_seed(3)
    for i in range(30):
        plain.optimizer.zero_grad()
        generator = torch.Generator().manual_seed(i)
        loss = plain.model(torch.randn(32, 8, generator=generator)).square().mean()
        plain.scaler.scale(loss).backward()
        plain.scaler.unscale_(plain.optimizer)
        nn.utils.clip_grad_norm_(plain.model.parameters(), 1e6)
        plain.scaler.step(plain.optimizer)
        plain.scaler.update()
    assert guarded.scaling() == plain.scaling()
    assert not differences(guarded.state(), plain.state())


def test_norms_are_those_of_the_unscaled_gradients() -> None:
    torch.manual_seed(1)
    small = Bench(scale=1.0).attempt().grad_norm
    torch.manual_seed(1)
    assert Bench(scale=2.0**12).attempt().grad_norm == pytest.approx(small, rel=1e-5)


@pytest.mark.parametrize("good_steps", [0, 3])
def test_an_overflow_that_the_scaler_handles_is_no_incident(good_steps: int) -> None:
    bench = Bench()
    for _ in range(good_steps):
        bench.attempt()
    before = bench.state()
    report = bench.attempt(gradient=math.inf)
    assert (report.action, report.step, report.overflow) == ("skipped", good_steps, True)
    assert report.incident is None
    assert report.verdict.kind == "ok"
    assert bench.scaling() == (SCALE / 2, 0)
    assert not differences(before, bench.state())
    assert bench.attempt().action == "applied"


def test_a_skip_of_the_guard_keeps_the_scale_and_its_growth() -> None:
    bench = Bench()
    for _ in range(3):
        bench.attempt()
    scaling, before = bench.scaling(), bench.state()
    report = bench.attempt(loss=math.nan)
    assert (report.action, report.overflow) == ("skipped", False)
    assert report.incident is not None
    assert bench.scaling() == scaling == (SCALE, 3)
    assert not differences(before, bench.state())
    bench.attempt()
    assert bench.scaling() == (SCALE, 4)


def test_overflows_that_no_lower_scale_cures_become_incidents() -> None:
    bench = Bench(scale=4.0)
    reports = [bench.attempt(gradient=math.inf) for _ in range(5)]
    assert [r.overflow for r in reports] == [True, True, True, False, False]
    assert [r.incident is not None for r in reports] == [False, False, False, True, True]


def test_a_rollback_restores_the_scale() -> None:
    bench = Bench(growth_interval=5, snapshot={"every_steps": 10}, budget={"consecutive_skips": 1})
    for _ in range(17):
        bench.attempt()
    assert bench.scaling() == (SCALE * 8, 2)
    assert bench.attempt(loss=math.nan).rolled_back_to == 10
    assert bench.scaling() == (SCALE * 4, 0)


def test_a_disabled_scaler_is_no_scaler() -> None:
    model = network()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    guard = GradientGuard(model, optimizer, scaler=torch.amp.GradScaler("cpu", enabled=False))
    guard.backward(model(torch.ones(4, 8)).square().mean() * math.nan)
    assert guard.step().action == "skipped"
