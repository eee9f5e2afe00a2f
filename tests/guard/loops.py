"""Small models, data and training loops that the tests of the guard share."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from torch.optim import Optimizer
from torch.optim.lr_scheduler import CosineAnnealingLR

from guard import FaultConfig, FaultInjector, GradientGuard, GuardConfig, GuardMetrics, StepReport

NEVER = 1e6
"""A clipping limit that never bites."""
SAMPLES = 512
BATCH = 64

MakeOptimizer = Callable[[list[nn.Parameter]], Optimizer]


def sgd(parameters: list[nn.Parameter]) -> Optimizer:
    return torch.optim.SGD(parameters, lr=0.05, momentum=0.9, weight_decay=1e-3)


def adamw(parameters: list[nn.Parameter]) -> Optimizer:
    return torch.optim.AdamW(parameters, lr=3e-3)


def network(seed: int = 0) -> nn.Module:
    """BatchNorm for buffers, Dropout for random numbers."""
    torch.manual_seed(seed)
    return nn.Sequential(
        nn.Linear(8, 16), nn.BatchNorm1d(16), nn.ReLU(), nn.Dropout(0.1), nn.Linear(16, 4, bias=False)
    )


class Cursor:
    """Endless batches of a fixed regression problem; its position is its state."""

    def __init__(self, *, rank: int = 0, world_size: int = 1) -> None:
        generator = torch.Generator().manual_seed(7)
        self._x = torch.randn(SAMPLES, 8, generator=generator)
        self._y = torch.tanh(self._x @ torch.randn(8, 4, generator=generator))
        self._rank, self._world_size = rank, world_size
        self.position = 0
        self.last_ids: list[int] = []

    def __next__(self) -> tuple[Tensor, Tensor]:
        first = self.position * BATCH
        self.last_ids = [(first + i) % SAMPLES for i in range(BATCH)]
        ids = self.last_ids[self._rank :: self._world_size]
        self.position += 1
        return self._x[ids], self._y[ids]

    def state_dict(self) -> dict[str, Any]:
        return {"position": self.position}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.position = int(state["position"])


@dataclass
class Run:
    """All the pieces of one training run; ``guard`` is None in a plain loop."""

    model: nn.Module
    optimizer: Optimizer
    scheduler: Any
    cursor: Cursor
    guard: GradientGuard | None = None
    faults: FaultInjector | None = None
    reports: list[StepReport] = field(default_factory=list)

    def state(self) -> dict[str, Any]:
        """Copies of the weights, the buffers, the optimizer's state and the schedule."""
        return {
            "model": {k: v.clone() for k, v in self.model.state_dict().items()},
            "optimizer": [
                {k: v.clone() if isinstance(v, Tensor) else v for k, v in self.optimizer.state[p].items()}
                for group in self.optimizer.param_groups
                for p in group["params"]
            ],
            "lr": [group["lr"] for group in self.optimizer.param_groups],
            "scheduler": self.scheduler.state_dict() if self.scheduler is not None else None,
        }

    def loss(self) -> Tensor:
        inputs, targets = next(self.cursor)
        if self.faults is not None:
            inputs, targets = self.faults.batch((inputs, targets))
        loss = nn.functional.mse_loss(self.model(inputs), targets)
        return loss if self.faults is None else self.faults.loss(loss)

    def attempt(self, closure: Callable[[], Tensor | None] | None = None) -> StepReport:
        """One guarded step."""
        assert self.guard is not None
        if self.faults is not None:
            self.faults.begin(self.guard.steps)
        self.optimizer.zero_grad()
        self.guard.backward(self.loss())
        self.reports.append(self.guard.step(closure))
        return self.reports[-1]

    def train(self, steps: int, *, attempts: int = 1000) -> Run:
        """Guarded attempts until ``steps`` optimizer steps stand."""
        assert self.guard is not None
        while self.guard.steps < steps:
            assert len(self.reports) < attempts, "the run does not get on"
            self.attempt()
        return self

    def train_plain(self, steps: int, max_norm: float | None = NEVER) -> Run:
        """The loop without a guard."""
        for _ in range(steps):
            self.optimizer.zero_grad()
            self.loss().backward()
            if max_norm is not None:
                nn.utils.clip_grad_norm_(self.model.parameters(), max_norm)
            self.optimizer.step()
            if self.scheduler is not None:
                self.scheduler.step()
        return self


def plain_run(make_optimizer: MakeOptimizer = sgd, *, seed: int = 0, ddp: bool = False, **where: int) -> Run:
    model = network(seed)
    wrapped = DistributedDataParallel(model) if ddp else model
    optimizer = make_optimizer(list(model.parameters()))
    torch.manual_seed(100 + where.get("rank", 0))
    return Run(wrapped, optimizer, CosineAnnealingLR(optimizer, T_max=500), Cursor(**where))


def guarded_run(
    config: dict[str, Any] | None = None,
    make_optimizer: MakeOptimizer = sgd,
    *,
    faults: Iterable[dict[str, Any]] = (),
    journal: Path | None = None,
    state: dict[str, Any] | None = None,
    ema: Any = None,
    metrics: GuardMetrics | None = None,
    ddp: bool = False,
    **where: int,
) -> Run:
    run = plain_run(make_optimizer, ddp=ddp, **where)
    settings = {"clip": {"max_norm": NEVER}, **(config or {})}
    run.guard = GradientGuard(
        run.model,
        run.optimizer,
        GuardConfig.model_validate(settings),
        scheduler=run.scheduler,
        state=state,
        data=run.cursor,
        ema=ema,
        journal=journal,
        metrics=metrics,
        job="test",
    )
    configs = [FaultConfig.model_validate(fault) for fault in faults]
    run.faults = FaultInjector(configs, model=run.model, optimizer=run.optimizer, rank=where.get("rank", 0))
    return run


def differences(left: Any, right: Any, path: str = "") -> list[str]:
    """Where two nested states differ, to the bit; NaN equals NaN."""
    if isinstance(left, Tensor) and isinstance(right, Tensor):
        same = left.dtype == right.dtype and torch.equal(left.nan_to_num(7.77), right.nan_to_num(7.77))
        return [] if same else [path]
    if isinstance(left, dict) and isinstance(right, dict):
        if left.keys() != right.keys():
            return [f"{path}: {sorted(map(str, left))} and {sorted(map(str, right))}"]
        return [d for k in left for d in differences(left[k], right[k], f"{path}.{k}")]
    if isinstance(left, list | tuple) and isinstance(right, list | tuple):
        if len(left) != len(right):
            return [f"{path}: lengths {len(left)} and {len(right)}"]
        pairs = zip(left, right, strict=True)
        return [d for i, (a, b) in enumerate(pairs) for d in differences(a, b, f"{path}[{i}]")]
    both_nan = isinstance(left, float) and isinstance(right, float) and math.isnan(left) and math.isnan(right)
    return [] if both_nan or left == right else [f"{path}: {left!r} and {right!r}"]


def but_for_update_norm(found: list[str]) -> list[str]:
    """Without clock times, and what depends on how far the weights moved across an interruption: it is
    measured there, and without ``guard.snapshot()`` the run that was not interrupted does not."""
    measured = ("update_", "updates", ".moved.", "rising_rate.moved", "_seconds")
    return [path for path in found if not any(name in path for name in measured)]


def facts(report: StepReport) -> dict[str, Any]:
    """The contents of a report, but for clock times."""
    incident = report.incident
    return {
        "step": report.step,
        "attempt": report.attempt,
        "action": report.action,
        "loss": report.loss,
        "grad_norm": report.grad_norm,
        "clip_coef": report.clip_coef,
        "verdict": report.verdict.kind,
        "score": report.verdict.score,
        "lr": report.learning_rate,
        "rolled_back_to": report.rolled_back_to,
        "recovery": dict(report.recovery),
        "incident": None if incident is None else (incident.id, incident.action, incident.window),
    }
