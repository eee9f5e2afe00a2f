"""The bad samples of all ranks are ranked by what they explain."""

import math

import numpy as np

from guard.agree.sample_rows import FoundSample, ranked, sample_row
from guard.records import Verdict

UNKNOWN = sample_row(0, False, [])


def row(healthy: bool, *found: tuple[int, float], samples: int = 32) -> list[float]:
    return sample_row(samples, healthy, [FoundSample(sample, 3.0, math.nan, fall) for sample, fall in found])


def named(rows: list[list[float]], *wholes: float) -> list[tuple[int, int]]:
    spike = Verdict("spike", "loss", 9.0, 1.0)
    return [(s.sample, s.rank) for s in ranked(np.array(rows), np.array(wholes), spike)]


def test_a_sample_without_which_the_excess_goes_is_named_and_one_that_matters_little_is_not() -> None:
    assert named([row(True, (4, 0.05)), row(True, (9, 2.0)), UNKNOWN], 1.1, 3.0, math.nan) == [(9, 1)]


def test_the_worst_of_all_ranks_comes_first() -> None:
    assert named([row(True, (4, 0.5)), row(True, (9, 1.5))], 1.5, 2.5) == [(9, 1), (4, 0)]


def test_samples_that_are_not_finite_are_named_where_anything_is_finite() -> None:
    nan = row(False, (4, math.nan), (5, math.nan))
    assert named([nan, row(True)], math.nan, 1.1) == [(4, 0), (5, 0)]
    assert named([nan, UNKNOWN], math.nan, math.nan) == []  # nothing was: it is the weights


def test_in_a_small_batch_an_even_share_is_no_evidence() -> None:
    assert named([row(True, (1, 0.8), (2, 0.7), samples=4)], 3.0) == []
    assert named([row(True, (1, 1.9), samples=2)], 3.0) == [(1, 0)]


def test_ids_are_exact() -> None:
    for sample in (0, -1, 2**24 + 1, 2**53 + 1, 2**62 + 1, -(2**62) - 1):
        assert named([row(True, (sample, 2.0))], 3.0) == [(sample, 0)]
