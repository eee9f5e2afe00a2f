"""The members that explain a measure are found, whatever it is a measure of, and no others."""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Sequence

import pytest

from guard.observe.culprits import explain, not_finite

Measure = Callable[[list[float]], float]

USUAL = 1.0
MEASURES: dict[str, Measure] = {
    "mean": lambda values: sum(values) / len(values),
    "sum": sum,
    "weighted by themselves": lambda values: sum(v * v for v in values) / sum(values),
    "norm": lambda values: math.hypot(*values) / len(values),
    "largest": max,
}
AGAINST_EACH_OTHER: Measure = lambda values: max(values) - min(values) + USUAL  # noqa: E731


def of(measure: Measure, values: Sequence[float]) -> tuple[Callable[[Sequence[int]], float], list[int]]:
    """The measure of some members, and the sizes of those that were asked for."""
    sizes: list[int] = []

    def value(some: Sequence[int]) -> float:
        sizes.append(len(some))
        return measure([values[i] for i in some])

    return value, sizes


def batch(count: int, bad: Sequence[int], worse: float, seed: int) -> list[float]:
    draws = random.Random(seed)
    values = [USUAL * draws.uniform(0.5, 1.5) for _ in range(count)]
    return [worse * draws.uniform(0.8, 1.2) if i in bad else v for i, v in enumerate(values)]


@pytest.mark.parametrize("measure", [*MEASURES.values(), AGAINST_EACH_OTHER], ids=[*MEASURES, "spread"])
@pytest.mark.parametrize("count", [3, 7, 64, 65, 256])
def test_one_bad_member_is_the_only_one_found(measure: Measure, count: int) -> None:
    for bad in (0, count // 2, count - 1):
        values = batch(count, [bad], 5000.0, seed=bad)
        value, sizes = of(measure, values)
        whole, usual = value(range(count)), measure([USUAL] * count)
        found = explain(range(count), value, whole, usual)
        assert list(found) == [bad]
        assert found[bad] > 0.9 * (whole - usual)
        assert len(sizes) <= 1 + 8 * math.ceil(math.log(count, 8) - 1e-9)


@pytest.mark.parametrize("measure", MEASURES.values(), ids=list(MEASURES))
@pytest.mark.parametrize("bad", [[3, 60], [0, 1], [31, 32, 33], [5, 21, 40]])
def test_several_bad_members_are_all_found_and_no_others(measure: Measure, bad: list[int]) -> None:
    value, _ = of(measure, batch(64, bad, 5000.0, seed=1))
    whole, usual = value(range(64)), measure([USUAL] * 64)
    found = explain(range(64), value, whole, usual)
    assert sorted(found) == bad
    assert sum(found.values()) > 0.9 * (whole - usual)


def test_two_that_hide_each_other_are_not_blamed_on_others() -> None:
    value, _ = of(AGAINST_EACH_OTHER, batch(64, [0, 1], 5000.0, seed=1))
    assert set(explain(range(64), value, value(range(64)), USUAL)) <= {0, 1}


def test_where_all_are_worse_none_is_to_blame() -> None:
    value, _ = of(MEASURES["mean"], batch(64, range(64), 50.0, seed=2))
    assert explain(range(64), value, value(range(64)), USUAL) == {}


@pytest.mark.parametrize("fewest", [1, 2])
@pytest.mark.parametrize("bad", [[0], [63], [0, 1], [7, 40, 41], list(range(8, 16))])
def test_all_that_are_not_finite_are_found_in_a_logarithm_of_passes(bad: list[int], fewest: int) -> None:
    values = [math.nan if i in bad else USUAL for i in range(64)]
    value, sizes = of(lambda v: sum(v) if len(v) >= fewest else math.nan, values)
    found, healthy = not_finite(range(64), lambda some: math.isfinite(value(some)))
    assert (sorted(found), healthy) == (bad, True)
    assert len(sizes) <= 9 * (len(bad) + fewest - 1)


def test_where_nothing_is_finite_nothing_shows_that_it_is_the_members() -> None:
    assert not not_finite(range(64), lambda _: False)[1]
