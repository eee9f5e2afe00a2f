"""A flipped bit in one rank's memory is found, named and corrected; what differs by design is no fault."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.distributed as dist
from torch import Tensor

from guard import RankDivergence
from guard.act.fingerprints import fingerprints
from guard.act.replicas import Replicas, affordable, odd_ranks, one_bit
from guard.faults.injector import flip_bit_
from guard.types import Damage
from tests.guard.flips import EVERY, draw, judged, run
from tests.guard.loops import differences, guarded_run
from tests.guard.ranks import on_ranks


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16, torch.float64])
def test_each_of_200_flipped_bits_changes_the_fingerprint_of_its_tensor(dtype: torch.dtype) -> None:
    draw = random.Random(0)
    tensors = [torch.randn(n).to(dtype) for n in (1, 7, 4096, 100_001)]
    tensors.append(torch.randn(4097).to(dtype)[1:])  # which no word of 8 bytes begins
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


@pytest.mark.parametrize("bit", [0, 31, 40, 63])
def test_one_bit_is_told_from_several_although_sums_wrap(bit: int) -> None:
    values = torch.tensor([2.5, -1e30, -0.0, 7.0], dtype=torch.float64)
    flipped, other = values.clone(), values.clone()
    for target in (flipped, other):
        flip_bit_(target, 1, bit)
    flip_bit_(other, 2, 5)
    sums = np.stack([fingerprints([t]).numpy() for t in (values, flipped, other)])[:, 0]
    assert one_bit(sums[:2])
    assert not one_bit(sums[[0, 2]])


def compared(name: str, *checks: list[int], tensor: Tensor | None = None) -> list[Damage]:
    """What the last of several checks finds; each has the sum of one tensor on every rank."""
    replicas = Replicas(dict, 1, None)
    tensors = {} if tensor is None else {name: tensor}
    return [replicas.compare([name], np.array([check]).T, tensors) for check in checks][-1]


@pytest.mark.parametrize(
    ("name", "checks"),
    [
        ("buffer mean", ([0, 0], [0, 7], [0, 14], [0, 21])),  # equal at first, then each rank's own
        ("buffer mean", ([0, 0], [0, 0], [0, 0], [7, 9])),  # a frozen BatchNorm that is trained later
        ("buffer mean", ([0, 0, 0], [0, 0, 0], [0, 0, 0], [7, 9, 3])),
        ("weight w", ([5, 5], [6, 7], [8, 9], [4, 3])),  # rounded at random, or never the same
        ("weight w", ([5, 5], [5, 5], [5, 5], [4, 3])),  # the same, once a warm-up of rate 0 is over
        ("moment w error", ([3, 8], [4, 9], [5, 5], [6, 4])),  # an error that each rank feeds back
    ],
)
def test_what_is_each_ranks_own_is_no_fault(name: str, checks: Any) -> None:
    assert not compared(name, *checks)


def test_a_count_of_the_batches_of_one_rank_is_no_fault_but_a_flipped_bit_is() -> None:
    count = torch.zeros((), dtype=torch.int64)
    assert not compared("buffer count", [1, 1], [2, 2], [3, 4], tensor=count)
    assert compared("buffer count", [1, 1, 1], [2, 2, 2], [3, 3, 3 + (1 << 40)], tensor=count)


@pytest.mark.parametrize("name", ["weight w", "moment w step", "buffer mask"])
def test_a_rank_without_the_majority_is_named(name: str) -> None:
    found = compared(name, [1, 1, 1], [2, 2, 2], [3, 7, 3])
    assert found == [Damage(name, (1,), 0)]


def test_of_two_ranks_the_one_is_named_whose_constant_changed() -> None:
    found = compared("weight frozen", [4, 4], [4, 4], [4, 4], [9, 4])
    assert found == [Damage("weight frozen", (0,), 1)]


def test_of_two_ranks_none_is_named_that_both_had_changed() -> None:
    assert compared("weight w", [1, 1], [2, 2], [3, 7]) == [Damage("weight w", (), 0)]


@pytest.mark.parametrize(
    ("check_s", "step_s", "steps"),
    [(1e-3, 1.0, 50), (4.2e-3, 5.75e-3, 150), (1.0, 1e-3, 1000), (0.1, 0.0, 1000)],
)
def test_checks_cost_at_most_half_a_percent_of_a_step(check_s: float, step_s: float, steps: int) -> None:
    assert affordable(check_s, step_s) == steps


def test_an_expensive_check_is_made_less_often_unless_its_steps_are_given(tmp_path: Path) -> None:
    store = dist.FileStore(str(tmp_path / "store"), 1)
    dist.init_process_group("gloo", store=store, rank=0, world_size=1)
    try:
        tensors = {"weight w": torch.randn(1 << 20)}
        by_cost, given = Replicas(lambda: tensors, None, None), Replicas(lambda: tensors, 7, None)
        for replicas in (by_cost, given):
            for step in range(1, 5):  # steps that take no time
                replicas.check(step)
        assert by_cost.every > 50
        assert given.every == 7
    finally:
        dist.destroy_process_group()


def flips_on_a_rank(rank: int, world_size: int, folder: Path) -> list[Any]:
    return [run(rank, world_size, flip) for flip in (None, *draw(12, world_size, seed=3))]


@pytest.mark.parametrize("world_size", [2, pytest.param(3, marks=pytest.mark.slow)])
def test_a_flipped_bit_is_found_named_and_leaves_no_trace(tmp_path: Path, world_size: int) -> None:
    ranks = on_ranks(world_size, flips_on_a_rank, tmp_path)
    plain = [results[0] for results in ranks]
    assert not plain[0]["found"]
    for i, flip in enumerate(draw(12, world_size, seed=3), start=1):
        seen = judged(flip, [results[i] for results in ranks], plain)
        assert not seen["differ"], seen
        if seen["found"]:  # rounding can remove the lowest bits of what is averaged before a check
            assert seen["named"], seen
            assert seen["after"] <= EVERY, seen
            assert ranks[0][i]["faults"][str(flip.rank)] == 1, seen
        else:
            assert flip.kind != "weight", seen
            assert flip.bit < 4, seen


def found_late(rank: int, world_size: int, folder: Path) -> list[Any]:
    """Compared at steps 1 to 3 and 30, while snapshots of steps 20 and 30 exist: flips before and after."""
    config = {"replicas": 30, "snapshot": {"every_steps": 10}}
    runs: list[Any] = []
    for flipped_at in (None, 25, 15):
        run = guarded_run(config, ddp=True, rank=rank, world_size=world_size)
        weight = next(p for p in run.model.parameters() if p.ndim == 2)
        try:
            run.train(flipped_at or 40)
            if rank == 1 and flipped_at is not None:
                flip_bit_(weight, 0, 5)
            runs.append(run.train(40).state())
        except RankDivergence as error:
            runs.append(str(error))
    return runs


def test_damage_that_two_ranks_find_late_is_undone_if_it_is_younger_than_a_snapshot(tmp_path: Path) -> None:
    for plain, younger, older in on_ranks(2, found_late, tmp_path):
        assert not differences(plain, younger)
        assert "also in the snapshot of step 20" in older


def again_and_again(rank: int, world_size: int, folder: Path) -> str:
    guarded = guarded_run(
        {"replicas": 1, "budget": {"rollbacks": 2}}, ddp=True, rank=rank, world_size=world_size
    )
    weight = next(p for p in guarded.model.parameters() if p.ndim == 2)
    try:
        for attempt in range(12):
            if rank == 1 and attempt >= 5:  # once the weights are known to be equal
                flip_bit_(weight, 0, 5)
            guarded.attempt()
    except RankDivergence as error:
        return str(error)
    return "nothing"


def test_memory_that_is_damaged_again_and_again_stops_all_ranks(tmp_path: Path) -> None:
    for said in on_ranks(2, again_and_again, tmp_path):
        assert "after 2 repairs" in said
        assert "weight" in said
        assert "replace the device" in said
