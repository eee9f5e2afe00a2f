"""A skipped step leaves no trace: weights, moments, step counters, buffers, schedule."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.optim.lr_scheduler import StepLR

from guard import GradientGuard, GuardConfig
from tests.guard.loops import MakeOptimizer, differences, guarded_run, network

NEEDS_CLOSURE_OR_SPARSE = {"Optimizer", "LBFGS", "SparseAdam"}
NAMES = sorted(
    name
    for name, kind in vars(torch.optim).items()
    if isinstance(kind, type)
    and issubclass(kind, torch.optim.Optimizer)
    and name not in NEEDS_CLOSURE_OR_SPARSE
)
FUSED = ["SGD", "Adam", "AdamW", "Adagrad"]


def maker(name: str, **options: Any) -> MakeOptimizer:
    def make(parameters: list[nn.Parameter]) -> torch.optim.Optimizer:
        matrices = [p for p in parameters if p.ndim == 2] if name == "Muon" else parameters
        momentum = {"momentum": 0.9} if name in ("SGD", "RMSprop") else {}
        optimizer: torch.optim.Optimizer = getattr(torch.optim, name)(
            matrices, lr=1e-3, **momentum, **options
        )
        return optimizer

    return make


@pytest.mark.parametrize("good_steps", [0, 3])
@pytest.mark.parametrize(
    ("name", "options"),
    [*((name, {}) for name in NAMES), *((name, {"fused": True}) for name in FUSED)],
    ids=[*NAMES, *(f"{name}-fused" for name in FUSED)],
)
def test_a_skip_is_exact_for_every_optimizer(name: str, options: dict[str, Any], good_steps: int) -> None:
    bad = {"kind": "poisoned_batch", "step": good_steps, "factor": math.nan}
    run = guarded_run(None, maker(name, **options), faults=[bad]).train(good_steps)
    before = run.state()
    report = run.attempt()
    assert (report.action, report.step, report.verdict.kind) == ("skipped", good_steps, "nonfinite")
    assert not differences(before, run.state())
    assert run.attempt().action == "applied"


FAULTS = {
    "nan loss": {"kind": "nan_loss"},
    "inf batch": {"kind": "poisoned_batch", "factor": math.inf},
    "nan gradient": {"kind": "scaled_gradient", "factor": math.nan, "parameter": "0.weight"},
    "inf gradient": {"kind": "scaled_gradient", "factor": math.inf, "parameter": "4.weight"},
}


@pytest.mark.parametrize("fault", FAULTS)
@pytest.mark.parametrize("good_steps", [0, 5])
def test_a_skip_is_exact_whatever_was_not_finite(fault: str, good_steps: int) -> None:
    run = guarded_run(faults=[{**FAULTS[fault], "step": good_steps}]).train(good_steps)
    before = run.state()
    report = run.attempt()
    assert report.action == "skipped"
    assert not differences(before, run.state())
    assert report.verdict.signal == ("grad_norm" if "gradient" in fault else "loss")


def test_the_schedule_stands_still_on_a_skip() -> None:
    model = network()
    optimizer = torch.optim.SGD(model.parameters(), lr=1.0)
    scheduler = StepLR(optimizer, step_size=1, gamma=0.5)
    guard = GradientGuard(model, optimizer, scheduler=scheduler)
    for factor in (1.0, math.nan, 1.0):
        optimizer.zero_grad()
        guard.backward(model(torch.randn(8, 8)).square().mean() * factor)
        guard.step()
    assert scheduler.last_epoch == 2
    assert optimizer.param_groups[0]["lr"] == 0.25


class Counting(nn.Module):
    """Buffers of every sort: replaced, created late, integer, expanded, large, written unseen."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(8, 4)
        self.register_buffer("replaced", torch.zeros(4))
        self.register_buffer("late", None)
        self.register_buffer("count", torch.zeros((), dtype=torch.int64))
        self.register_buffer("expanded", torch.arange(3.0).expand(5, 3), persistent=False)
        self.register_buffer("large", torch.zeros(70_000))
        self.register_buffer("flags", torch.zeros(4, dtype=torch.bool))
        self.norm = nn.BatchNorm1d(4)
        self.norm.num_batches_tracked = None

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.norm(self.layer(x))
        self.replaced = 0.9 * self.replaced + y.detach().mean(0)
        self.late = y.detach().amax(0)
        self.count += 1
        self.large[0] += 1
        self.flags.logical_not_()
        return y.square().mean()


def buffers(model: nn.Module) -> dict[str, Tensor | None]:
    found = {f"{m}.{n}": b for m, module in model.named_modules() for n, b in module._buffers.items()}
    return {name: None if b is None else b.clone() for name, b in found.items()}


@pytest.mark.parametrize("good_steps", [0, 2])
def test_a_skip_puts_every_sort_of_buffer_back(good_steps: int) -> None:
    model = Counting()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    guard = GradientGuard(model, optimizer)
    for _ in range(good_steps):
        optimizer.zero_grad()
        guard.backward(model(torch.randn(8, 8)))
        guard.step()
    for _ in range(2):
        before = buffers(model)
        optimizer.zero_grad()
        guard.backward(model(torch.full((8, 8), math.nan)))
        assert differences(before, buffers(model))
        assert guard.step().action == "skipped"
        assert not differences(before, buffers(model))


def test_a_rollback_puts_every_sort_of_buffer_back() -> None:
    model = Counting()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    guard = GradientGuard(model, optimizer, GuardConfig.model_validate({"budget": {"consecutive_skips": 1}}))
    before = buffers(model)
    optimizer.zero_grad()
    guard.backward(model(torch.randn(8, 8)))
    guard.step()
    optimizer.zero_grad()
    guard.backward(model(torch.full((8, 8), math.nan)))
    assert guard.step().rolled_back_to == 0
    assert not differences(before, buffers(model))


@pytest.mark.filterwarnings("ignore:.*torch.jit:DeprecationWarning")
def test_a_skip_puts_the_statistics_of_a_torchscript_part_back() -> None:
    part = torch.jit.script(nn.Sequential(nn.Linear(4, 4), nn.BatchNorm1d(4)))
    model = nn.Sequential(part, nn.Linear(4, 1))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    guard = GradientGuard(model, optimizer)
    for factor in (1.0, math.nan):
        before = {name: value.clone() for name, value in model.state_dict().items()}
        optimizer.zero_grad()
        guard.backward(model(torch.randn(8, 4) * factor).square().mean())
        report = guard.step()
    assert report.action == "skipped"
    assert not differences(before, model.state_dict())
