"""A flipped bit in the memory of one rank is found and named; what differs by design is no fault."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from pydantic import ValidationError
from torch import Tensor, nn

from guard import GradientGuard, GuardConfig, RankDivergence
from guard.act.replicas import Replicas, fingerprints, odd_ranks
from guard.faults.injector import flip_bit_
from guard.observe.observer import Observer
from tests.guard.loops import guarded_run
from tests.guard.ranks import on_ranks


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16, torch.float64])
def test_each_of_200_flipped_bits_changes_the_fingerprint_of_its_tensor(dtype: torch.dtype) -> None:
    draw = random.Random(0)
    tensors = [torch.randn(n).to(dtype) for n in (1, 7, 4096, 100_001)]
    before = fingerprints(tensors)
    for _ in range(200):
        target = draw.randrange(len(tensors))
        index = draw.randrange(tensors[target].numel())
        bit = draw.randrange(tensors[target].element_size() * 8)
        flip_bit_(tensors[target], index, bit)
        changed = (fingerprints(tensors) != before).nonzero().flatten().tolist()
        assert changed == [target], (target, index, bit)
        flip_bit_(tensors[target], index, bit)
    assert torch.equal(fingerprints(tensors), before)


def test_the_rank_is_that_without_the_majority_or_in_a_tie_the_one_that_changed() -> None:
    assert odd_ranks(np.array([5, 5, 9]), before=1) == [2]
    assert odd_ranks(np.array([5, 9]), before=9) == [0]
    assert odd_ranks(np.array([5, 9]), before=1) == []


def replicas() -> Replicas:
    model = nn.Linear(2, 2)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    return Replicas(model, optimizer, Observer(dict(model.named_parameters())), 1, None)


def test_statistics_that_are_each_ranks_own_are_no_fault() -> None:
    check = replicas()
    for step in range(4):  # equal at first, then each rank's own
        check.compare(["buffer mean"], np.array([[0], [step * 7]]))


def test_a_buffer_that_changed_alike_is_compared() -> None:
    check = replicas()
    check.compare(["buffer count"], np.array([[1], [1], [1]]))
    check.compare(["buffer count"], np.array([[2], [2], [2]]))
    with pytest.raises(RankDivergence, match="buffer count differs on rank 1"):
        check.compare(["buffer count"], np.array([[3], [7], [3]]))


def test_replicas_with_deferred_steps_are_refused() -> None:
    with pytest.raises(ValidationError, match="set mode to exact"):
        GuardConfig(mode="deferred", replicas=10)


def damaged(rank: int, world_size: int, kind: str | None) -> dict[str, Any]:
    """Rank 1 flips one bit after step 8 of a run that compares every third step."""
    make = lambda p: torch.optim.AdamW(p, lr=3e-3)  # noqa: E731
    run = guarded_run({"replicas": 3}, make, ddp=True, rank=rank, world_size=world_size).train(8)
    error = ""
    if rank == 1 and kind is not None:
        weight = next(p for p in run.model.parameters() if p.ndim == 2)
        state = run.optimizer.state[weight]
        target = {"weight": weight, "moment": state["exp_avg_sq"]}[kind]
        flip_bit_(target, 3, 1)
    try:
        run.train(14)
    except RankDivergence as divergence:
        error = str(divergence)
    assert isinstance(run.guard, GradientGuard)
    return {"error": error, "steps": run.guard.steps, "weights": [w.detach() for w in run.model.parameters()]}


def scenarios(rank: int, world_size: int, folder: Path) -> dict[str | None, dict[str, Any]]:
    return {kind: damaged(rank, world_size, kind) for kind in (None, "weight", "moment")}


@pytest.mark.slow
def test_a_flipped_bit_stops_all_ranks_within_k_steps_and_is_named(tmp_path: Path) -> None:
    ranks = on_ranks(3, scenarios, tmp_path)
    for seen in ranks:
        assert (seen[None]["error"], seen[None]["steps"]) == ("", 14)
        assert "the weight 0.weight differs on rank 1" in seen["weight"]["error"]
        assert "0.weight exp_avg_sq differs on rank 1" in seen["moment"]["error"] or (
            "weight 0.weight differs on rank 1" in seen["moment"]["error"]
        )
        assert seen["weight"]["steps"] == seen["moment"]["steps"] == 9
    plain: list[Tensor] = ranks[0][None]["weights"]
    assert all(torch.equal(a, b) for a, b in zip(plain, ranks[2][None]["weights"], strict=True))
