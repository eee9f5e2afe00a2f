"""Two ranks under DDP: an idle guard changes no bit; ranks that part ways are caught."""

from __future__ import annotations

import warnings
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from guard import GradientGuard, RankDivergence
from tests.guard.loops import MakeOptimizer, Run, adamw, differences, guarded_run, plain_run, sgd
from tests.guard.ranks import on_ranks

pytestmark = pytest.mark.slow

STEPS = 60
OPTIMIZERS: dict[str, MakeOptimizer] = {
    "sgd": sgd,
    "adamw": adamw,
    "fused": lambda p: torch.optim.AdamW(p, lr=3e-3, fused=True),
}


def idle(mode: str, optimizer: str, where: dict[str, Any]) -> list[str]:
    plain = plain_run(OPTIMIZERS[optimizer], **where).train_plain(STEPS)
    config = {"mode": mode, "snapshot": {"every_steps": 20}}
    return differences(
        plain.state(), guarded_run(config, OPTIMIZERS[optimizer], **where).train(STEPS).state()
    )


def accumulate(run: Run, *, last: bool) -> None:
    with nullcontext() if last else run.model.no_sync():  # type: ignore[operator]
        loss = run.loss() / 2
        loss.backward() if run.guard is None else run.guard.backward(loss)


def accumulated(where: dict[str, Any]) -> tuple[list[str], bool]:
    plain = plain_run(**where)
    for _ in range(20):
        plain.optimizer.zero_grad()
        accumulate(plain, last=False)
        accumulate(plain, last=True)
        nn.utils.clip_grad_norm_(plain.model.parameters(), 1e6)
        plain.optimizer.step()
        plain.scheduler.step()
    run = guarded_run(**where)
    assert run.guard is not None
    norms: list[float] = []
    for _ in range(20):
        run.optimizer.zero_grad()
        accumulate(run, last=False)
        accumulate(run, last=True)
        with warnings.catch_warnings(action="ignore", category=UserWarning):  # losses divided by hand
            norms.extend(run.guard.step().local_norms or [])
    return differences(plain.state(), run.state()), all(norm > 0 for norm in norms[2:])


def scenarios(rank: int, world_size: int, folder: Path) -> dict[str, Any]:
    where = {"rank": rank, "world_size": world_size, "ddp": True}
    cases = [("exact", name) for name in OPTIMIZERS] + [("shadow", "adamw"), ("off", "adamw")]
    return {
        "idle": {case: idle(*case, where) for case in cases},
        "accumulated": accumulated(where),
    }


def test_an_idle_guard_changes_no_bit_on_two_ranks(tmp_path: Path) -> None:
    for seen in on_ranks(2, scenarios, tmp_path):
        assert not any(seen["idle"].values()), seen["idle"]
        changed, all_local_norms_taken = seen["accumulated"]
        assert changed == []
        assert all_local_norms_taken


def parted(rank: int, world_size: int, folder: Path) -> str:
    """Memory of rank 1 is damaged after the all-reduce: it alone sees a bad gradient."""
    model = DistributedDataParallel(nn.Linear(3, 1))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    guard = GradientGuard(model, optimizer)

    def backward() -> None:
        optimizer.zero_grad()
        guard.backward(model(torch.ones(4, 3)).square().mean())

    backward()
    guard.step()
    backward()
    if rank == 1:
        optimizer.param_groups[0]["params"][0].grad.fill_(float("nan"))
    weights = [weight.clone() for weight in model.parameters()]
    with pytest.raises(RankDivergence) as raised:
        guard.step()
    assert all(map(torch.equal, weights, model.parameters())), "the step was applied"
    return str(raised.value)


def test_a_verdict_that_one_rank_alone_reaches_is_an_error_and_not_a_hang(tmp_path: Path) -> None:
    for message in on_ranks(2, parted, tmp_path):
        assert "the gradients of rank 1 differ" in message
