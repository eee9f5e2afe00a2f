"""A checkpoint that one rank asks for is due on all ranks, after the same step, once."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from tests.guard.loops import guarded_run
from tests.guard.ranks import on_ranks


def requested(rank: int, world_size: int, _: Path) -> list[tuple[int, bool, bool]]:
    run = guarded_run(ddp=world_size > 1, rank=rank, world_size=world_size)
    assert run.guard is not None
    seen = []
    for attempt in range(5):
        if rank == 0 and attempt == 2:
            run.guard.request_checkpoint()
        report = run.attempt()
        seen.append((report.step, report.checkpoint, report.stop))
    return seen


@pytest.mark.slow
def test_a_checkpoint_requested_on_one_rank_is_reported_once_on_all_ranks(tmp_path: Path) -> None:
    first, second = on_ranks(2, requested, tmp_path)
    assert first == second == [(step, step == 3, False) for step in range(1, 6)]


def test_a_stop_and_a_checkpoint_are_requested_beside_each_other() -> None:
    run = guarded_run()
    assert run.guard is not None
    run.guard.request_checkpoint()
    run.guard.request_stop()
    report = run.attempt()
    assert (report.checkpoint, report.stop) == (True, True)
    report = run.attempt()
    assert (report.checkpoint, report.stop) == (False, True), "a stop stands, a checkpoint is requested once"


def test_a_deferred_guard_reports_the_request_with_its_step() -> None:
    config: dict[str, Any] = {"mode": "deferred", "clip": {"kind": "auto"}}
    run = guarded_run(config, lambda p: torch.optim.SGD(p, lr=0.05, fused=True)).train(40)
    assert run.guard is not None
    run.guard.request_checkpoint()
    attempt = run.guard.attempts + 1
    reports = [run.attempt() for _ in range(4)]
    assert [report.attempt for report in reports if report.checkpoint] == [attempt]
