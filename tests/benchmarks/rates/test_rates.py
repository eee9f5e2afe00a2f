"""The LR sensitivity counts what it should, and every method trains at the rate that it is given."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path

import pytest
from bench_rates import OURS, SENSITIVITY, results, tables

from rates.bench_untouched import compared
from rates.methods import CLIPS, GUARD, METHODS, PRODIGY, RIVALS, SCHEDULE_FREE, SCHEDULES, held_out, lacking
from rates.tasks import tasks
from rates.unseen import unseen

MLP, COSINE = "MLP, Adam", "cosine"


def test_a_lost_run_counts_as_one_and_the_best_is_that_of_the_plain_and_the_clipped_runs() -> None:
    plain = {(MLP, "no guard", COSINE, 1, 0, 9): 0.5, (MLP, "no guard", COSINE, 10, 0, 9): math.inf}
    clip = {(MLP, "clip 1.0", COSINE, 1, 0, 9): 0.3, (MLP, "clip 1.0", COSINE, 10, 0, 9): 0.7}
    own = {(MLP, PRODIGY, COSINE, 1, 0, 9): 0.2}
    own |= {(MLP, SCHEDULE_FREE, "constant", times, 0, 9): 0.4 for times in (1, 10)}
    ours = {(MLP, GUARD, COSINE, times, 0, 9): 0.3 * times for times in (1, 10)}
    shown = tables({**plain, **clip, **own, **ours}, [COSINE], (1, 10))
    found = {row["method"]: row["mean"] for row in shown[SENSITIVITY]}
    expected = {"no guard": 0.6, "clip 1.0": 0.2, PRODIGY: -0.1, SCHEDULE_FREE: 0.1, GUARD: 0.5}
    assert found == pytest.approx(expected)
    assert shown[OURS] == [{"network": MLP, "schedule": COSINE, "x 1": "1.00", "x 10": "10.00"}]


def test_what_seeds_share_is_no_error_and_the_best_rate_is_that_of_the_other_seeds() -> None:
    by_seed = [0.1, 0.2, 0.4, 0.8]
    best = {(MLP, "no guard", COSINE, 1, seed, 9): loss for seed, loss in enumerate(by_seed)}
    lucky = {(MLP, "no guard", COSINE, 10, seed, 9): 0.01 if seed == 3 else 9.0 for seed in range(4)}
    ours = {(MLP, GUARD, COSINE, 1, seed, 9): 1.1 * loss for seed, loss in enumerate(by_seed)}
    shares = zip(by_seed, (2.4, 0.5, 2.0, 0.5), strict=True)
    noisy = {(MLP, GUARD, COSINE, 10, seed, 9): a * b for seed, (a, b) in enumerate(shares)}
    (row,) = tables({**best, **lucky, **ours, **noisy}, [COSINE], (1, 10))[OURS]
    assert row["x 1"] == "1.10 ± 0.00 *"
    assert row["x 10"] == "1.05 ± 0.45"


def test_runs_that_were_made_before_are_not_made_again(tmp_path: Path) -> None:
    keep = tmp_path / "runs.jsonl"
    keep.write_text('[["MLP, Adam", "no guard", "cosine", 1, 0, 9], 0.25]\n')
    run = (MLP, "no guard", COSINE, 1, 0, 9)
    assert results([run], {}, keep) == {run: 0.25}


@pytest.mark.parametrize("method", METHODS)
def test_every_method_learns_at_the_right_rate(method: str) -> None:
    if reason := lacking(method):
        pytest.skip(reason)
    task = tasks()[MLP]
    assert held_out(task, method, COSINE, 1, 0, 80) < 1.5


@pytest.mark.parametrize("clip", CLIPS)
def test_the_guard_clips_as_the_rival_does(clip: str) -> None:
    task = tasks()[MLP]
    rival = held_out(task, clip, COSINE, 1, 0, 80)
    assert rival != held_out(task, "no guard", COSINE, 1, 0, 80)
    assert held_out(task, f"{GUARD}, {clip}", COSINE, 1, 0, 80) == pytest.approx(rival, rel=1e-4)


@pytest.mark.parametrize("method", RIVALS)
@pytest.mark.parametrize("schedule", SCHEDULES)
def test_a_rate_of_zero_changes_nothing(method: str, schedule: str) -> None:
    task = tasks()[MLP]
    still = replace(task, task=replace(task.task, lr=0.0))
    assert held_out(still, method, schedule, 1, 0, 5) == held_out(still, method, schedule, 1, 0, 1)


@pytest.mark.parametrize("schedule", ["constant", "warm-up, cosine"])
def test_first_steps_of_adagrad_that_are_long_are_no_evidence(schedule: str) -> None:
    untouched = {"runs": 1, "tried": 0, "cut": 0, "other bits": 0}
    assert compared(unseen()["bag of words, Adagrad"], schedule, 1, 80) == untouched


def test_the_unseen_tasks_train() -> None:
    for task in unseen().values():
        start, end = (held_out(task, "no guard", "constant", 1, 0, steps) for steps in (0, 30))
        assert end < start, task.task.name
