"""Ranks that differ stop together before anything is applied, and the error names where they differ."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.distributed as dist
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from guard import GradientGuard, GuardConfig, GuardError, RankDivergence
from guard.agree.divergence import check_norms
from tests.guard.ranks import on_ranks

MakeParts = Callable[[int], tuple[nn.Module, torch.optim.Optimizer, GuardConfig]]


def parts(*, width: int = 4, lr: float = 0.1, config: Any = None) -> Any:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(8, width), nn.Tanh(), nn.Linear(width, 1))
    return model, torch.optim.SGD(model.parameters(), lr=lr), GuardConfig.model_validate(config or {})


OTHER: dict[str, tuple[MakeParts, str]] = {
    "clip": (lambda r: parts(config={"clip": {"max_norm": 1.0 - 0.9 * r}}), "clip.max_norm is 1.0 on rank 0"),
    "detector": (lambda r: parts(config={"detect": {"sigmas": 6.0 + r}}), "detect.sigmas is 6.0 on rank 0"),
    "mode": (lambda r: parts(config={"mode": ("exact", "shadow")[r]}), "mode is 'exact' on rank 0"),
    "rate": (lambda r: parts(lr=0.1 + r), "optimizer group 0.lr is 0.1 on rank 0 and 1.1 on rank 1"),
    "shape": (lambda r: parts(width=4 + r), "parameter 0.weight is 4x8 float32 on rank 0 and 5x8"),
}


def refused(make: MakeParts, rank: int) -> dict[str, Any]:
    """Whether the first step is refused, and the weights are those before it."""
    model, optimizer, config = make(rank)
    before = [p.detach().clone() for p in model.parameters()]
    guard = GradientGuard(model, optimizer, config)
    guard.backward(model(torch.ones(4, 8)).sum())
    with pytest.raises(RankDivergence) as raised:
        guard.step()
    same = all(map(torch.equal, before, model.parameters()))
    return {"said": str(raised.value), "same": same}


class Trained:
    """A DDP model of which a step can be disturbed on one rank."""

    def __init__(self, **config: Any) -> None:
        self.inner, self.optimizer, settings = parts(config={"clip": {"max_norm": 1e6}, **config})
        self.model = DistributedDataParallel(self.inner)
        self.guard = GradientGuard(self.model, self.optimizer, settings)

    def attempt(self, rank: int, *, synchronize: bool = True, damage: float = 1.0) -> float:
        self.optimizer.zero_grad()
        inputs = torch.randn(16, 8, generator=torch.Generator().manual_seed(10 * self.guard.attempts + rank))
        self.model.require_backward_grad_sync = synchronize
        self.guard.backward((self.model(inputs) - inputs.sum(1, keepdim=True)).square().mean())
        for parameter in self.inner.parameters():
            if parameter.grad is not None and rank == 1:
                parameter.grad.mul_(damage)
        return self.guard.step().grad_norm

    def weights(self) -> list[float]:
        return torch.cat([p.detach().flatten() for p in self.inner.parameters()]).tolist()


def disturbed(rank: int, **how: Any) -> dict[str, Any]:
    """A healthy run, then a step of which the ranks' gradients differ."""
    run = Trained()
    for _ in range(5):
        run.attempt(rank)
    before = run.weights()
    with pytest.raises(RankDivergence, match="after the all-reduce"):
        run.attempt(rank, **how)
    return {"same": before == run.weights(), "weights": run.weights()}


def rounded(rank: int) -> list[float]:
    """Norms that differ by rounding, as on unlike devices."""
    run = Trained()
    return [run.attempt(rank, damage=1 + 1e-6) for _ in range(5)]


def after_a_bad_batch(rank: int) -> tuple[list[float], list[float]]:
    """The loss of this rank after a NaN batch, and the mean that a deferred guard reports for it."""
    model, _, config = parts(config={"mode": "deferred", "update_norm": "off"})
    ddp = DistributedDataParallel(model)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3, fused=True)
    guard, draw = GradientGuard(ddp, optimizer, config), torch.Generator().manual_seed(rank)
    true, reported = [], []
    for attempt in range(32):
        optimizer.zero_grad()
        loss = (ddp(torch.randn(32, 8, generator=draw)) - 3).square().mean() + 5
        true.append(loss.item())
        guard.backward(loss * math.nan if attempt == 25 else loss)
        reported.append(guard.step().loss)  # of the attempt before
    return true[26:31], reported[27:32]


def joined(rank: int) -> str:
    run = Trained()
    with pytest.raises(GuardError) as raised, run.model.join():
        run.attempt(rank)
    return str(raised.value)


def scenarios(rank: int, world_size: int, folder: Path) -> dict[str, Any]:
    return {
        "other": {name: refused(make, rank) for name, (make, _) in OTHER.items()},
        "no sync": disturbed(rank, synchronize=False),
        "damaged": disturbed(rank, damage=1.01),
        "rounded": rounded(rank),
        "late": after_a_bad_batch(rank),
    }


@pytest.fixture(scope="module")
def ranks(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    return on_ranks(2, scenarios, tmp_path_factory.mktemp("ranks"))


@pytest.mark.slow
@pytest.mark.parametrize("name", OTHER)
def test_ranks_with_other_settings_stop_before_the_first_step(ranks: list[dict[str, Any]], name: str) -> None:
    for seen in ranks:
        assert seen["other"][name]["same"]
        assert "of rank 1 differs" in seen["other"][name]["said"]
        assert OTHER[name][1] in seen["other"][name]["said"]


@pytest.mark.slow
@pytest.mark.parametrize("name", ["no sync", "damaged"])
def test_a_gradient_that_differs_is_applied_on_no_rank(ranks: list[dict[str, Any]], name: str) -> None:
    assert all(seen[name]["same"] for seen in ranks)
    assert ranks[0][name]["weights"] == ranks[1][name]["weights"]


@pytest.mark.slow
def test_norms_that_differ_by_rounding_are_decided_on_alike(ranks: list[dict[str, Any]]) -> None:
    assert ranks[0]["rounded"] == ranks[1]["rounded"]


@pytest.mark.slow
def test_the_evidence_of_a_bad_batch_does_not_reach_the_loss_of_the_next(ranks: list[dict[str, Any]]) -> None:
    (first, reported), (second, _) = ranks[0]["late"], ranks[1]["late"]
    assert reported == pytest.approx([(a + b) / 2 for a, b in zip(first, second, strict=True)], rel=1e-5)


def join(rank: int, world_size: int, folder: Path) -> str:
    return joined(rank)


@pytest.mark.slow
def test_a_loop_with_uneven_inputs_is_refused_at_once(tmp_path: Path) -> None:
    for said in on_ranks(2, join, tmp_path):
        assert "DistributedSampler" in said


def late_group(rank: int, world_size: int, folder: Path) -> str:
    dist.destroy_process_group()
    model, optimizer, config = parts()
    guard = GradientGuard(model, optimizer, config)
    store = dist.FileStore(str(folder / "late"), world_size)
    dist.init_process_group("gloo", store=store, rank=rank, world_size=world_size)
    with pytest.raises(GuardError) as raised:
        guard.backward(model(torch.ones(4, 8)).sum())
    return str(raised.value)


@pytest.mark.slow
def test_a_guard_made_before_the_process_group_is_refused(tmp_path: Path) -> None:
    for said in on_ranks(2, late_group, tmp_path):
        assert "before init_process_group" in said


@pytest.mark.parametrize(
    ("norms", "odd"),
    [
        ([2.0, 1.0], "rank 1"),
        ([2.0, 1.0, 1.0], "rank 0"),
        ([1.0, 1.0, math.nan], "rank 2"),
        ([math.nan, math.nan, 1.0], "rank 2"),
        ([1.0, 2.0, 3.0, 2.0, 2.0], "rank 0, 2"),
        ([1.0] * 9_999 + [1.1], "rank 9999"),
    ],
)
def test_the_ranks_in_the_minority_are_named(norms: list[float], odd: str) -> None:
    with pytest.raises(RankDivergence, match=f"of {odd} differ"):
        check_norms(np.array(norms), dict, None)


@pytest.mark.parametrize("norms", [[1.0, 1.0005], [math.nan, math.nan], [math.inf] * 3, [0.0, 0.0]])
def test_norms_that_are_the_same_but_for_rounding_pass(norms: list[float]) -> None:
    check_norms(np.array(norms), dict, None)
