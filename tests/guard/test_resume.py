"""Interrupted anywhere and continued in new objects, a run is the uninterrupted one to the bit."""

from __future__ import annotations

import copy
import pickle
from pathlib import Path
from typing import Any

import pytest
import torch

from guard import GuardMetrics
from guard.act import rng
from tests.guard.loops import Run, adamw, but_for_update_norm, differences, facts, guarded_run
from tests.guard.ranks import on_ranks

CONFIG: dict[str, Any] = {
    "snapshot": {"every_steps": 20},
    "budget": {"consecutive_skips": 2},
    "recovery": {"cooldown_steps": 25, "l1": 1e-4},
    "clip": {"kind": "auto", "factor": 1.2},
}
FAULTS = [{"kind": "nan_loss", "step": 25, "times": 2}]
ATTEMPTS = 60


def fresh(**where: Any) -> Run:
    return guarded_run(CONFIG, adamw, faults=FAULTS, metrics=GuardMetrics(), **where)


def saved(run: Run) -> dict[str, Any]:
    assert run.guard is not None
    assert run.faults is not None
    return {
        "model": run.model.state_dict(),
        "optimizer": run.optimizer.state_dict(),
        "scheduler": run.scheduler.state_dict(),
        "cursor": run.cursor.state_dict(),
        "guard": run.guard.state_dict(),
        "faults": run.faults.state_dict(),
        "rng": rng.capture(),
    }


def load(run: Run, state: dict[str, Any]) -> Run:
    assert run.guard is not None
    assert run.faults is not None
    run.model.load_state_dict(state["model"])
    run.optimizer.load_state_dict(state["optimizer"])
    run.scheduler.load_state_dict(state["scheduler"])
    run.cursor.load_state_dict(state["cursor"])
    run.faults.load_state_dict(state["faults"])
    rng.restore(state["rng"])
    run.guard.load_state_dict(state["guard"])
    return run


def interrupted(at: int, **where: Any) -> Run:
    run = fresh(**where)
    for _ in range(at):
        run.attempt()
    state = pickle.loads(pickle.dumps(saved(run)))
    torch.manual_seed(999)
    resumed = load(fresh(**where), state)
    resumed.reports = run.reports
    return resumed


def finish(run: Run) -> Run:
    while len(run.reports) < ATTEMPTS:
        run.attempt()
    return run


def compare(whole: Run, resumed: Run) -> list[str]:
    assert whole.guard is not None
    assert resumed.guard is not None
    ours, theirs = whole.guard.state_dict(), resumed.guard.state_dict()
    for state in (ours, theirs):
        for clock in ("guard_seconds", "rollback_seconds"):
            state["metrics"]["totals"].pop(clock)
            state["ledger"]["totals"].pop(clock)
        state["metrics"].pop("created")
    reports = differences([facts(r) for r in whole.reports], [facts(r) for r in resumed.reports])
    remembered = but_for_update_norm(differences(ours, theirs, "guard") + reports)
    return differences(whole.state(), resumed.state()) + remembered


# 26 is after the first skip, 27 right after the rollback, 28 to 52 its cooldown. Interrupted between the
# step that is a snapshot and the rollback to it, a run would return to where it was resumed instead.
@pytest.mark.parametrize("at", [1, 7, 20, 27, 28, 35, 51, 52, 53, 59])
def test_an_interruption_changes_nothing(at: int) -> None:
    whole = finish(fresh())
    assert [r.action for r in whole.reports].count("rolled_back") == 1
    assert not compare(whole, finish(interrupted(at)))


def test_a_resumed_run_rolls_back_to_where_it_was_resumed() -> None:
    run = interrupted(23)
    before = run.state()
    while run.reports[-1].action != "rolled_back":
        run.attempt()
    assert run.reports[-1].rolled_back_to == 23
    assert not differences(before, run.state())


def with_state() -> tuple[Run, dict[str, Any], dict[str, Any]]:
    """A run, its guard's state, and a copy of that."""
    run = fresh()
    for _ in range(30):
        run.attempt()
    assert run.guard is not None
    state = run.guard.state_dict()
    return run, state, copy.deepcopy(state)


def test_a_saved_state_is_not_changed_by_what_follows() -> None:
    run, state, before = with_state()
    for _ in range(10):
        run.attempt()
    assert not differences(before, state)


def test_loading_does_not_tie_two_guards_together() -> None:
    run, state, before = with_state()
    resumed = load(fresh(), saved(run) | {"guard": state})
    for _ in range(10):
        resumed.attempt()
    assert not differences(before, state)


def ranks_interrupted(rank: int, world_size: int, folder: Path) -> list[list[str]]:
    where = {"rank": rank, "world_size": world_size, "ddp": True}
    whole = finish(fresh(**where))
    return [compare(whole, finish(interrupted(at, **where))) for at in (7, 27, 40)]


@pytest.mark.slow
def test_an_interruption_of_two_ranks_changes_nothing(tmp_path: Path) -> None:
    for changed in on_ranks(2, ranks_interrupted, tmp_path):
        assert changed == [[], [], []]


def test_a_run_with_a_snapshot_at_its_checkpoint_is_measured_alike_when_it_continues() -> None:
    """How far the weights have moved decides whether an outlier is skipped: it is the same on both sides."""

    def run(at: int | None) -> Run:
        loop = fresh()
        for attempt in range(ATTEMPTS):
            if attempt in (13, 22, 41):
                assert loop.guard is not None
                loop.guard.snapshot()
                if attempt == at:
                    state = pickle.loads(pickle.dumps(saved(loop)))
                    resumed = load(fresh(), state)
                    resumed.reports = loop.reports
                    loop = resumed
            loop.attempt()
        return loop

    whole = run(None)
    assert whole.guard is not None
    for at in (13, 41):
        resumed = run(at)
        assert resumed.guard is not None
        assert [r.update_norm for r in resumed.reports] == [r.update_norm for r in whole.reports]
        ours, theirs = (loop.guard.state_dict()["actor"]["moved"] for loop in (whole, resumed))
        assert not differences(ours, theirs)
