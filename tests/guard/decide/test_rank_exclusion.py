"""A rank whose data stays bad is excluded, after the ladder had its turn; the others continue exactly."""

from __future__ import annotations

import copy
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from guard import GuardMetrics, StepReport
from guard.act import rng
from guard.config import ExclusionConfig
from guard.decide.rank_exclusion import RankExclusion, without
from guard.types import Agreed
from tests.guard.loops import NEVER, Run, adamw, guarded_run
from tests.guard.ranks import on_ranks

BAD = range(80, 100)
"""Positions of the batches that are bad."""
NORMAL = 2.0
"""A loss below this is nothing special."""


def fine(loss: float) -> bool:
    return loss < NORMAL


def agreed(*losses: float, dropped_micro_batches: int = 0) -> Agreed:
    each = np.array(losses)
    return Agreed(
        float(each.mean()),
        each,
        np.full(len(each), math.nan),
        stop=False,
        dropped_micro_batches=dropped_micro_batches,
    )


def culprits(
    exclusion: RankExclusion, *batches: Agreed, norms: tuple[float, ...] = (), every: int = 1
) -> list[Any]:
    found = []
    for number, batch in enumerate(batches):
        local = np.array(norms) if norms else np.full(len(batch.losses), math.nan)
        found.append(exclusion.culprit(number * every, batch, local, fine))
    return found


@pytest.mark.parametrize("bad", [50.0, math.nan, math.inf])
def test_a_rank_is_excluded_from_its_third_bad_batch_on(bad: float) -> None:
    assert culprits(RankExclusion(ExclusionConfig()), *[agreed(1.0, bad, 1.0)] * 4) == [None, None, 1, 1]


def test_bad_batches_of_several_ranks_are_nobodys() -> None:
    several = [agreed(1.0, 50.0, 50.0), agreed(math.nan, math.nan, 1.0), agreed(50.0, 50.0)]
    assert culprits(RankExclusion(ExclusionConfig(after=1)), *several) == [None, None, None]


def test_bad_batches_long_ago_do_not_count() -> None:
    exclusion = RankExclusion(ExclusionConfig(after=2, window_steps=10))
    assert culprits(exclusion, *[agreed(50.0, 1.0)] * 3, every=10) == [None, None, None]


def test_each_rank_is_counted_for_itself() -> None:
    batches = [agreed(50.0, 1.0), agreed(1.0, 50.0), agreed(50.0, 1.0)]
    assert culprits(RankExclusion(ExclusionConfig(after=2)), *batches) == [None, None, 0]


def test_a_gradient_that_stands_out_names_its_rank_where_the_loss_is_fine() -> None:
    exclusion = RankExclusion(ExclusionConfig(after=1))
    assert culprits(exclusion, agreed(1.0, 1.0, 1.0), norms=(1.0, 1.2, 9.0)) == [2]
    assert culprits(exclusion, agreed(1.0, 1.0, 1.0), norms=(1.0, math.nan, 1.1)) == [1]
    assert culprits(exclusion, agreed(1.0, 1.0, 1.0), norms=(1.0, 1.2, 1.1)) == [None]
    assert culprits(exclusion, agreed(1.0, 1.0, 1.0)) == [None], "norms that were not taken"


def test_what_was_excluded_for_long_is_the_new_normal() -> None:
    exclusion = RankExclusion(ExclusionConfig(after=1, limit=2, window_steps=5))
    for _ in range(2):
        assert culprits(exclusion, agreed(50.0, 1.0)) == [0]
        exclusion.count()
    assert culprits(exclusion, agreed(50.0, 1.0)) == [None]


@pytest.mark.parametrize("batch", [agreed(50.0), agreed(50.0, 1.0, dropped_micro_batches=1)])
def test_one_rank_and_windows_with_gaps_exclude_nothing(batch: Agreed) -> None:
    assert culprits(RankExclusion(ExclusionConfig(after=1)), batch) == [None]


def test_it_can_be_switched_off() -> None:
    assert culprits(RankExclusion(ExclusionConfig(after=None)), *[agreed(50.0, 1.0)] * 5) == [None] * 5


def test_the_counts_continue() -> None:
    exclusion, other = RankExclusion(ExclusionConfig()), RankExclusion(ExclusionConfig())
    culprits(exclusion, *[agreed(1.0, 50.0)] * 2)
    other.load_state_dict(exclusion.state_dict())
    assert other.culprit(2, agreed(1.0, 50.0), np.full(2, math.nan), fine) == 1


def test_the_loss_without_a_rank_is_the_mean_of_the_others() -> None:
    assert without(agreed(1.0, math.nan, 3.0), 1).loss == 2.0


def spoilt(run: Run, rank: int, bad: tuple[int, ...]) -> tuple[Tensor, Tensor]:
    inputs, targets = next(run.cursor)
    is_bad = rank in bad and run.cursor.position - 1 in BAD
    return inputs, targets + 100.0 * is_bad


def attempt(run: Run, batch: tuple[Tensor, Tensor]) -> StepReport:
    assert run.guard is not None
    run.optimizer.zero_grad()

    def loss() -> Tensor:
        return nn.functional.mse_loss(run.model(batch[0]), batch[1])

    run.guard.backward(loss())
    run.reports.append(run.guard.step(loss))
    return run.reports[-1]


def fused(parameters: list[nn.Parameter]) -> torch.optim.Optimizer:
    return torch.optim.AdamW(parameters, lr=3e-3, fused=True)


def trained(
    rank: int, world_size: int, bad: tuple[int, ...] = (1,), *, mode: str = "exact", **exclusion: Any
) -> tuple[Run, GuardMetrics]:
    metrics = GuardMetrics(job="test")
    config = {
        "mode": mode,
        "clip": {"kind": "norm", "max_norm": NEVER},
        "rank_exclusion": exclusion,
        "snapshot": {"every_steps": 10},
    }
    where = {"rank": rank, "world_size": world_size, "ddp": True}
    run = guarded_run(config, adamw if mode == "exact" else fused, metrics=metrics, **where)
    while run.cursor.position < BAD.stop + 10:
        attempt(run, spoilt(run, rank, bad))
    return run, metrics


def a_bad_shard(rank: int, world_size: int, folder: Path) -> dict[str, Any]:
    run, metrics = trained(rank, world_size)
    assert run.guard is not None
    at = {report.attempt - 1: report for report in run.reports}
    incidents = [report.incident for report in run.reports if report.incident is not None]
    return {
        "ladder": [at[position].action for position in BAD[:2]],
        "then": {(at[position].action, *at[position].excluded_ranks) for position in BAD[2:]},
        "later": {tuple(report.excluded_ranks) for position, report in at.items() if position >= BAD.stop},
        "journal": [
            (incident.excluded_ranks, incident.faulty_ranks, incident.samples[:2]) for incident in incidents
        ],
        "reason": incidents[-1].reason,
        "counted": metrics.snapshot()["totals"]["rank_exclusions"],
        "anomalies": sum(sum(kinds.values()) for kinds in run.guard.totals.anomalies.values()),
        "incidents": run.guard.totals.incidents,
        "worst": incidents[-1].ranks[0]["rank"],
        "finite": bool(torch.cat([p.flatten() for p in run.model.parameters()]).isfinite().all()),
    }


@pytest.mark.slow
def test_a_bad_shard_meets_the_ladder_first_and_is_then_excluded(tmp_path: Path) -> None:
    ids = [BAD[2] * 64 % 512, BAD[2] * 64 % 512 + 1]
    for seen in on_ranks(2, a_bad_shard, tmp_path):
        assert seen["ladder"] == ["skipped", "rolled_back"]
        assert seen["then"] == {("applied", 1)}
        assert seen["later"] == {()}
        assert [excluded_ranks for excluded_ranks, _, _ in seen["journal"]] == [[], [], [1]], (
            "reported once, when it begins"
        )
        assert seen["journal"][-1] == ([1], [], ids)
        assert seen["reason"] == "the data of rank 1 stays bad: the rank is excluded"
        assert seen["counted"] == len(BAD) - 2
        assert (seen["incidents"], seen["anomalies"]) == (3, len(BAD)), "one, and one at each attempt"
        assert seen["worst"] == 1
        assert seen["finite"]


def a_bad_shard_deferred(rank: int, world_size: int, folder: Path) -> Any:
    at = {report.attempt - 1: report for report in trained(rank, world_size, mode="deferred")[0].reports}
    then = {(at[position].action, *at[position].excluded_ranks) for position in BAD[2:]}
    return [at[position].action for position in BAD[:2]], then


@pytest.mark.slow
def test_a_rank_is_excluded_in_mode_deferred_too(tmp_path: Path) -> None:
    for ladder, then in on_ranks(2, a_bad_shard_deferred, tmp_path):
        assert ladder == ["skipped", "rolled_back"]
        assert then == {("applied", 1)}


def one_exact_step(rank: int, world_size: int, folder: Path) -> dict[str, Any]:
    """The gradient of a step without rank 1, against that of rank 0's part alone."""
    run, _ = trained(rank, world_size)
    bare = run.model.module
    run.cursor.position = BAD.start
    batch, generators = spoilt(run, rank, (1,)), rng.capture()
    alone = copy.deepcopy(bare)
    alone.zero_grad()
    report = attempt(run, batch)
    rng.restore(generators)
    nn.functional.mse_loss(alone(batch[0]), batch[1]).backward()
    pairs = zip(alone.parameters(), bare.parameters(), strict=True)
    buffers = zip(alone.buffers(), bare.buffers(), strict=True)
    return {
        "excluded_ranks": report.excluded_ranks,
        "gradients": all(torch.equal(a.grad, b.grad) for a, b in pairs),
        "buffers": all(torch.equal(a, b) for a, b in buffers),
    }


@pytest.mark.slow
def test_the_step_is_that_of_the_other_rank_to_the_bit(tmp_path: Path) -> None:
    zero, one = on_ranks(2, one_exact_step, tmp_path)
    assert zero == {"excluded_ranks": [1], "gradients": True, "buffers": True}
    assert one == {"excluded_ranks": [1], "gradients": False, "buffers": False}, (
        "its own batch is another one"
    )


def switched_off(rank: int, world_size: int, folder: Path) -> list[Any]:
    off = [report.excluded_ranks for report in trained(rank, world_size, after=None)[0].reports]
    both = [report.excluded_ranks for report in trained(rank, world_size, bad=(0, 1))[0].reports]
    return [out for out in off + both if out]


@pytest.mark.slow
def test_no_rank_is_excluded_where_that_is_switched_off_or_all_are_bad(tmp_path: Path) -> None:
    assert on_ranks(2, switched_off, tmp_path) == [[], []]
