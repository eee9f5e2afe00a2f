"""Accelerate's ``accumulate`` with the guard by its documented lines: the same steps as without it."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import nn
from torch.optim.lr_scheduler import LinearLR

from guard import GradientGuard, GuardConfig, GuardError
from tests.guard.loops import NEVER, differences

accelerate = pytest.importorskip("accelerate", reason="needs accelerate")
pytestmark = pytest.mark.filterwarnings("ignore::FutureWarning")
STEPS, WINDOW = 10, 4


class Bench:
    def __init__(self, *, guarded: bool = True, accumulate: int = WINDOW) -> None:
        torch.manual_seed(0)
        self.accelerator = accelerate.Accelerator(cpu=True, gradient_accumulation_steps=accumulate)
        model = nn.Sequential(nn.Linear(8, 16), nn.BatchNorm1d(16), nn.Tanh(), nn.Linear(16, 1))
        optimizer = torch.optim.AdamW(model.parameters(), lr=0.01)
        schedule = LinearLR(optimizer, 0.1, total_iters=20)
        self.model, self.optimizer, self.schedule = self.accelerator.prepare(model, optimizer, schedule)
        self.guard: GradientGuard | None = None
        if guarded:
            config = GuardConfig(clip={"max_norm": NEVER})
            self.guard = GradientGuard(self.model, self.optimizer, config, scheduler=self.schedule)

    def train(self, *, bad: int | None = None) -> dict[str, Any]:
        generator = torch.Generator().manual_seed(1)
        for i in range(STEPS * WINDOW):
            inputs = torch.randn(16, 8, generator=generator)
            with self.accelerator.accumulate(self.model):
                loss = self.model(inputs * (math.nan if i == bad else 1.0)).square().mean()
                if self.guard is None:
                    self.plain(loss)
                else:
                    self.guarded(self.guard, loss)
        return dict(self.model.state_dict())

    def plain(self, loss: torch.Tensor) -> None:
        self.accelerator.backward(loss)
        self.optimizer.step()
        self.schedule.step()
        self.optimizer.zero_grad()

    def guarded(self, guard: GradientGuard, loss: torch.Tensor) -> None:
        guard.backward(loss, weight=1 / self.accelerator.gradient_accumulation_steps)
        if self.accelerator.sync_gradients:
            guard.step()
        self.optimizer.zero_grad()


def test_the_guarded_loop_ends_where_accelerate_alone_does() -> None:
    plain, bench = Bench(guarded=False), Bench()
    assert not differences(plain.train(), bench.train())
    assert plain.schedule.get_last_lr() == bench.schedule.get_last_lr()
    assert bench.guard is not None
    assert bench.guard.steps == STEPS == bench.guard.attempts


def test_a_bad_micro_batch_is_dropped_from_its_window() -> None:
    bench = Bench()
    bench.train(bad=22)
    assert bench.guard is not None
    assert (bench.guard.steps, bench.guard.totals.dropped_micro_batches) == (STEPS, 1)
    assert all(bool(p.isfinite().all()) for p in bench.model.parameters())


def test_a_step_before_the_end_of_the_window_is_refused_before_anything_changes() -> None:
    bench = Bench()
    before = {name: value.clone() for name, value in bench.model.state_dict().items() if "weight" in name}
    assert bench.guard is not None
    with bench.accelerator.accumulate(bench.model):
        bench.guard.backward(bench.model(torch.ones(4, 8)).mean())
        with pytest.raises(GuardError, match="accumulates"):
            bench.guard.step()
    assert not differences(before, {name: bench.model.state_dict()[name] for name in before})
