"""The LR sensitivity counts what it should, and every method trains at the rate that it is given."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path

import pytest
from bench_rates import SENSITIVITY, results, tables

from rates.methods import METHODS, PRODIGY, RIVALS, held_out, lacking
from rates.tasks import tasks

MLP = "MLP, Adam"


def test_a_lost_run_counts_as_one_and_the_best_is_that_of_the_plain_and_the_clipped_runs() -> None:
    plain = {(MLP, "no guard", 1, 0, 9): 0.5, (MLP, "no guard", 10, 0, 9): math.inf}
    clip = {(MLP, "clip 1.0", 1, 0, 9): 0.3, (MLP, "clip 1.0", 10, 0, 9): 0.7}
    own = {(MLP, PRODIGY, 1, 0, 9): 0.2}
    rows = tables({**plain, **clip, **own}, (1, 10))[SENSITIVITY]
    found = {row["method"]: row["mean"] for row in rows}
    assert found == pytest.approx({"no guard": 0.6, "clip 1.0": 0.2, PRODIGY: -0.1})


def test_runs_that_were_made_before_are_not_made_again(tmp_path: Path) -> None:
    keep = tmp_path / "runs.jsonl"
    keep.write_text('[["MLP, Adam", "no guard", 1, 0, 9], 0.25]\n')
    assert results([(MLP, "no guard", 1, 0, 9)], {}, keep) == {(MLP, "no guard", 1, 0, 9): 0.25}


@pytest.mark.parametrize("method", METHODS)
def test_every_method_learns_at_the_right_rate(method: str) -> None:
    if reason := lacking(method):
        pytest.skip(reason)
    task = tasks()[MLP]
    assert held_out(task, method, 1, 0, 60) < 1.5


@pytest.mark.parametrize("method", RIVALS)
def test_a_rate_of_zero_changes_nothing(method: str) -> None:
    task = tasks()[MLP]
    still = replace(task, task=replace(task.task, lr=0.0))
    assert held_out(still, method, 1, 0, 5) == held_out(still, method, 1, 0, 1)
