"""A bad batch leaves nothing in what a communication hook remembers of earlier gradients."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.distributed.algorithms.ddp_comm_hooks.powerSGD_hook import PowerSGDState, powerSGD_hook
from torch.nn.parallel import DistributedDataParallel

from guard import GradientGuard, GuardConfig
from tests.guard.ranks import on_ranks

pytestmark = pytest.mark.slow
STEPS, BAD = 24, 15
BY = ("hooks", "comm")
"""How local norms are taken: with ``comm`` the guard itself calls the user's hook."""


def network() -> DistributedDataParallel:
    torch.manual_seed(0)
    return DistributedDataParallel(nn.Sequential(nn.Linear(8, 32), nn.Tanh(), nn.Linear(32, 4)))


def compression() -> PowerSGDState:
    return PowerSGDState(None, matrix_approximation_rank=1, start_powerSGD_iter=5)


def batch(step: int, rank: int) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(10 * step + rank)
    return torch.randn(8, 8, generator=generator), torch.randn(8, 4, generator=generator)


def plain(rank: int) -> list[Tensor]:
    """torch's own loop, which never sees the bad batch."""
    model = network()
    model.register_comm_hook(compression(), powerSGD_hook)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    for step in range(STEPS):
        inputs, targets = batch(step, rank)
        optimizer.zero_grad()
        nn.functional.mse_loss(model(inputs), targets).backward()
        optimizer.step()
    return [p.detach().clone() for p in model.parameters()]


def guarded(rank: int, by: Any, *, closure: bool) -> dict[str, Any]:
    """The same with one batch between two steps that is NaN on rank 1."""
    model, actions = network(), []
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    guard = GradientGuard(model, optimizer, GuardConfig(clip={"kind": "off"}, local_norm_by=by))
    guard.register_comm_hook(compression(), powerSGD_hook)
    for step in [*range(BAD), -1, *range(BAD, STEPS)]:
        inputs, targets = batch(step, rank) if step >= 0 else batch(STEPS, rank)
        scale = torch.nan if step < 0 and rank == 1 else 1.0

        def loss(inputs: Tensor = inputs, targets: Tensor = targets, scale: float = scale) -> Tensor:
            return nn.functional.mse_loss(model(inputs), targets) * scale

        optimizer.zero_grad()
        guard.backward(loss())
        actions.append(guard.step(loss if closure else None).action)
    return {"actions": actions, "weights": [p.detach().clone() for p in model.parameters()]}


def scenarios(rank: int, world_size: int, folder: Path) -> dict[str, Any]:
    runs = {(by, closure): guarded(rank, by, closure=closure) for by in BY for closure in (False, True)}
    return {"plain": plain(rank), "guarded": runs}


def test_after_a_nan_powersgd_continues_as_if_the_batch_had_never_been(tmp_path: Path) -> None:
    for seen in on_ranks(2, scenarios, tmp_path):
        for run in seen["guarded"].values():
            assert [i for i, action in enumerate(run["actions"]) if action != "applied"] == [BAD]
            assert run["actions"][BAD] == "skipped"
            assert all(torch.equal(a, b) for a, b in zip(run["weights"], seen["plain"], strict=True))
