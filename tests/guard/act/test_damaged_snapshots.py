"""A snapshot whose memory was damaged since it was taken is never restored."""

from __future__ import annotations

from pathlib import Path

import pytest
from torch import Tensor

from guard import RankDivergence
from guard.faults.injector import flip_bit_
from tests.guard.loops import Run, adamw, differences, guarded_run
from tests.guard.ranks import on_ranks

SPIKE = {"kind": "lr_spike", "step": 27, "factor": 1e5}


def trained(steps: int, **options: object) -> Run:
    config = {"snapshot": {"every_steps": 10}}
    run = guarded_run(config, adamw, faults=[SPIKE], **options)  # type: ignore[arg-type]
    return run.train(steps)


def held(run: Run, step: int, part: str) -> Tensor:
    """The largest tensor of a part of the snapshot of this step, where it is stored."""
    assert run.guard is not None
    [snapshot] = [one for one in run.guard._state._ring._snapshots if one.step == step]
    stores = {"weights": snapshot.parameters, "moments": snapshot.optimizer._tensors}
    return max(stores[part]._copies, key=Tensor.numel)


def rollback(run: Run) -> tuple[int | None, str]:
    """Trains on until the run has rolled back: to which step, and why."""
    while run.attempt().action != "rolled_back":
        assert len(run.reports) < 100
    incident = run.reports[-1].incident
    assert incident is not None
    return incident.rolled_back_to, incident.reason


def test_an_intact_snapshot_is_restored_and_nothing_is_said_of_it() -> None:
    step, reason = rollback(trained(26))
    assert step == 20
    assert "memory" not in reason


@pytest.mark.parametrize("part", ["weights", "moments"])
def test_the_one_before_is_restored_in_place_of_a_damaged_one(part: str) -> None:
    run, before = trained(26), trained(10)
    flip_bit_(held(run, 20, part), 3, 12)
    step, reason = rollback(run)
    assert step == 10
    assert "the snapshot of step 20 has changed on rank 0" in reason
    assert differences(run.state()["model"], before.state()["model"]) == []


def without_any(rank: int, world_size: int, folder: Path) -> str:
    run = trained(26, ddp=True, rank=rank, world_size=world_size)
    if rank == 1:
        for step in (10, 20):
            flip_bit_(held(run, step, "weights"), 0, 3)
    try:
        rollback(run)
    except RankDivergence as error:
        return str(error)
    return "nothing"


def test_all_ranks_stop_where_none_is_intact_on_one_of_them(tmp_path: Path) -> None:
    for said in on_ranks(2, without_any, tmp_path):
        assert "the snapshot of step 10, 20 has changed on rank 1" in said
        assert "resume from the last good checkpoint" in said
