"""Two rates from one start: the lower one wins where that is more than chance."""

from __future__ import annotations

import math
from random import Random

import pytest

from guard.decide.duel import COMPARED, ends_lower

_draw = Random(0)
BATCHES = [_draw.lognormvariate(0.0, 0.5) for _ in range(COMPARED)]


def times(factor: float, noise: float = 0.0, seed: int = 1) -> list[float]:
    draw = Random(seed)
    return [factor * loss * draw.lognormvariate(0.0, noise) for loss in BATCHES]


@pytest.mark.parametrize(("factor", "lower"), [(0.8, True), (0.94, True), (0.96, False), (1.1, False)])
def test_on_the_same_batches_six_percent_are_seen_through_batches_that_differ_by_far_more(
    factor: float, lower: bool
) -> None:
    assert max(BATCHES) > 3 * min(BATCHES)
    assert ends_lower(times(factor), times(1.0), cut=False) == lower


def test_losses_that_differ_by_chance_alone_seldom_count_as_lower() -> None:
    wins = [ends_lower(times(1.0, 0.5, seed), times(1.0, 0.5, seed + 1000), cut=False) for seed in range(500)]
    assert sum(wins) <= 25


@pytest.mark.parametrize("bad", [math.inf, math.nan])
def test_a_loss_that_is_not_finite_never_wins(bad: float) -> None:
    assert not ends_lower([*times(0.5)[1:], bad], times(1.0), cut=False)
    assert not ends_lower([*times(0.5)[1:], bad], times(1.0), cut=True)


def test_where_the_rate_before_is_known_to_be_too_high_three_percent_are_enough() -> None:
    noisy = times(0.97, 0.1)
    assert ends_lower(times(0.97), times(1.0), cut=True)
    assert not ends_lower(noisy, times(1.0), cut=False)


def test_a_few_losses_decide_nothing() -> None:
    assert not ends_lower([0.1] * 7, [1.0] * COMPARED, cut=False)
