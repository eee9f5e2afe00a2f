"""What a deferred guard leaves to the host: batches after a bad one, comparisons, batches computed twice."""

from __future__ import annotations

import copy
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from guard import GradientGuard, GuardConfig
from guard.act import rng
from tests.guard import flips
from tests.guard.loops import Run, differences, guarded_run
from tests.guard.ranks import on_ranks

MICRO = 3


def fused(parameters: list[nn.Parameter]) -> torch.optim.Optimizer:
    return torch.optim.AdamW(parameters, lr=3e-3, fused=True)


def decided_on_the_device(guard: GradientGuard) -> bool:
    return guard.state_dict()["late"] is not None


def deferred(mode: str = "deferred", **config: Any) -> Run:
    return guarded_run({"mode": mode, "snapshot": {"every_steps": 20}, **config}, fused)


def attempt(run: Run, *, bad: bool = False, damaged: bool = False) -> bool:
    """One attempt; returns whether the batch was computed again. ``damaged``: only the first time."""
    assert run.guard is not None
    calls: list[int] = []
    inputs, targets = next(run.cursor)

    def loss() -> Tensor:
        found = nn.functional.mse_loss(run.model(inputs), targets)
        return found * math.nan if bad else found

    def closure() -> Tensor:
        calls.append(1)
        return loss()

    run.optimizer.zero_grad()
    run.guard.backward(loss() * (math.inf if damaged else 1.0))
    run.reports.append(run.guard.step(closure))
    return bool(calls)


def trained(run: Run, numbers: range, bad: int | None = None) -> Run:
    for number in numbers:
        attempt(run, bad=number == bad)
    return run


def test_a_healthy_run_with_a_closure_is_decided_on_the_device_and_computes_nothing_again() -> None:
    exact, later = deferred("exact"), deferred()
    assert later.guard is not None
    trained(exact, range(60))
    torch.manual_seed(100)
    for number in range(60):
        assert not attempt(later)
        assert decided_on_the_device(later.guard) is (number >= 12), number
    later.guard.flush()
    assert not differences(later.state(), exact.state())


def test_a_first_bad_batch_is_skipped_and_those_after_it_are_computed_again() -> None:
    run = deferred()
    again = [attempt(run, bad=number == 40, damaged=number in (43, 50)) for number in range(60)]
    reports = [report for report in run.reports if not report.pending]
    assert [i for i, computed in enumerate(again) if computed] == [43, 50]
    skipped = [report.attempt for report in reports if not report.applied]
    faults = [report.attempt for report in reports if report.faulty_ranks]
    assert (skipped, faults) == ([41], [44, 51])


def test_after_a_series_without_a_bad_batch_the_device_decides_again() -> None:
    run = deferred(rank_exclusion={"window_steps": 10})
    assert run.guard is not None
    on_device = []
    for number in range(60):
        attempt(run, bad=number == 30)
        on_device.append(decided_on_the_device(run.guard))
    assert [i for i in range(12, 60) if not on_device[i]] == list(range(31, 42))


def test_micro_batches_that_stay_bad_are_dropped_once_that_is_known() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 5), nn.BatchNorm1d(5), nn.Tanh(), nn.Linear(5, 1))
    guard = GradientGuard(model, fused(list(model.parameters())), GuardConfig(mode="deferred"))
    reports = []
    for number in range(50):
        model.zero_grad()
        for part in range(MICRO):
            x = torch.randn(8, 6)
            loss = nn.functional.mse_loss(
                model(x * (math.nan if (number > 40, part) == (True, 1) else 1.0)), x[:, :1]
            )
            guard.backward(loss, weight=1 / MICRO)
        reports.append(guard.step())
    found = {report.attempt - 1: report for report in reports if not report.pending}
    assert [i for i, report in found.items() if not report.applied] == [41, 42]
    assert [found[i].dropped_micro_batches for i in range(40, 49)] == [0] + [1] * 8
    assert all(buffer.isfinite().all() for buffer in model.buffers())


@pytest.mark.parametrize("bad", [False, True])
@pytest.mark.parametrize("mode", ["deferred", "exact"])
def test_a_run_saved_with_a_step_in_flight_continues_as_if_it_had_not_been(mode: str, bad: bool) -> None:
    whole = trained(deferred(), range(50), bad=39 if bad else None)
    cut = trained(deferred(), range(40), bad=39 if bad else None)
    assert cut.guard is not None
    assert decided_on_the_device(cut.guard)
    saved, generators = copy.deepcopy((cut.cursor, cut.scheduler.state_dict())), rng.capture()
    resumed = deferred(mode)
    assert resumed.guard is not None
    resumed.model.load_state_dict(cut.model.state_dict())
    resumed.optimizer.load_state_dict(copy.deepcopy(cut.optimizer.state_dict()))
    resumed.cursor.load_state_dict(saved[0].state_dict())
    resumed.scheduler.load_state_dict(saved[1])
    rng.restore(generators)
    resumed.guard.load_state_dict(copy.deepcopy(cut.guard.state_dict()))
    trained(resumed, range(40, 50))
    for run in (whole, resumed):
        assert run.guard is not None
        run.guard.flush()
        assert run.guard.steps == 50 - bad
    assert not differences(whole.state(), resumed.state())
    late, reported = whole.reports[40], resumed.reports[0]
    if mode == "deferred":
        assert (late.attempt, late.action, late.step) == (reported.attempt, reported.action, reported.step)


def flips_on_a_rank(rank: int, world_size: int, folder: Path) -> list[Any]:
    drawn = flips.draw(8, world_size, seed=3, later=flips.LATER)
    return [flips.run(rank, world_size, flip, mode="deferred") for flip in (None, *drawn)]


@pytest.mark.slow
def test_a_flipped_bit_is_found_named_and_leaves_no_trace(tmp_path: Path) -> None:
    world_size = 2
    ranks = on_ranks(world_size, flips_on_a_rank, tmp_path)
    plain = [results[0] for results in ranks]
    for i, flip in enumerate(flips.draw(8, world_size, seed=3, later=flips.LATER), start=1):
        seen = flips.judged(flip, [results[i] for results in ranks], plain)
        assert not seen["differ"], seen
        if seen["found"]:
            assert seen["named"], seen
            assert seen["after"] <= flips.EVERY, seen
        else:
            assert flip.kind != "weight", seen
            assert flip.bit < 4, seen
