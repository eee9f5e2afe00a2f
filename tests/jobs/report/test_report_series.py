import math

import numpy as np
import pytest
from matplotlib.figure import Figure

from jobs.report.heat import shares
from jobs.report.plot_style import flag_spans, thin_spans, value_axis
from jobs.report.series import bucket_max, bucketed, cell, column_count, envelope, matrix


@pytest.mark.parametrize("place", [0, 1, 4_999, 31_337, 99_999])
@pytest.mark.parametrize("height", [50.0, -50.0])
def test_a_spike_of_one_row_survives(place, height):
    x = np.arange(100_000.0)
    y = np.random.default_rng(0).normal(size=100_000)
    y[place] = height
    thin_x, thin_y = envelope(x, y, buckets=400)
    assert len(thin_x) <= 1600
    assert height in thin_y[thin_x == place]


def test_what_is_kept_are_points_of_the_series_in_their_order():
    x = np.sort(np.random.default_rng(1).uniform(0, 1e4, size=20_000))
    y = np.sin(x)
    thin_x, thin_y = envelope(x, y, buckets=100)
    assert (np.diff(thin_x) > 0).all()
    assert np.array_equal(thin_y, np.sin(thin_x))
    assert (thin_x[0], thin_x[-1]) == (x[0], x[-1])


def test_a_short_series_stays_as_it_is():
    x, y = np.arange(5.0), np.arange(5.0)
    assert envelope(x, y, buckets=2)[0] is x


def test_medians_and_means_follow_the_level_of_each_stretch():
    x = np.arange(1000.0)
    y = np.where(x < 500, 1.0, 3.0)
    y[10] = 1e9
    assert set(bucketed(x, y, 10, np.median)[1]) == {1.0, 3.0}
    assert bucketed(x, np.where(x < 250, 100.0, 0.0), 4, np.mean)[1] == pytest.approx([100, 0, 0, 0])


def test_stretches_without_points_are_omitted():
    x = np.array([0.0, 1.0, 99.0, 100.0])
    assert len(bucketed(x, x, 10, np.median)[0]) == 2


def test_heat_map_cells_hold_the_largest_value_and_never_hide_what_is_not_finite():
    x = np.array([0.0, 1.0, 2.0, 8.0])
    rows = matrix([[1.0, math.nan], [5.0, cell(math.nan)], [2.0, 3.0], [4.0, math.nan]], 2)
    table = bucket_max(x, rows, columns=3, span=(0.0, 9.0))
    assert table[0].tolist() == pytest.approx([5.0, math.nan, 4.0], nan_ok=True)
    assert table[1].tolist() == pytest.approx([math.inf, math.nan, math.nan], nan_ok=True)


def test_columns_are_as_wide_as_the_spacing_of_the_rows():
    assert column_count(np.arange(0.0, 1000.0, 10.0), (0.0, 1000.0), most=260) == 100
    assert column_count(np.arange(0.0, 1e5), (0.0, 1e5), most=260) == 260
    assert column_count(np.array([3.0]), (0.0, 9.0), most=260) == 1


@pytest.mark.parametrize(
    ("value", "entry"),
    [(1, 1.0), (None, math.nan), ("x", math.nan), (math.nan, math.inf), (-math.inf, math.inf)],
)
def test_matrix_entries_distinguish_missing_from_not_finite(value, entry):
    assert cell(value) == pytest.approx(entry, nan_ok=True)


def test_shares_of_ranks_add_up_and_survive_huge_norms():
    table = shares(np.array([[1.0, 1.0], [3.0, 4.0], [1e200, 1e200], [0.0, 0.0], [math.nan, 2.0]]))
    assert table[:3].tolist() == [[0.5, 0.5], pytest.approx([0.36, 0.64]), [0.5, 0.5]]
    assert np.isnan(table[3]).all()
    assert table[4].tolist() == pytest.approx([math.nan, 1.0], nan_ok=True)


def test_a_rank_that_is_not_finite_takes_the_others_out_of_the_row():
    assert shares(np.array([[2.0, math.inf]]))[0].tolist() == pytest.approx([math.nan, math.inf], nan_ok=True)


def test_flags_become_spans_and_near_ones_are_joined():
    x = np.array([1.0, 2.0, 3.0, 5.0, 9.0])
    assert flag_spans(x, np.array([True, True, False, True, True])) == [(1.0, 2.0), (5.0, 9.0)]
    assert flag_spans(x, np.zeros(5, dtype=bool)) == []
    assert thin_spans([(5.0, 5.0), (1.0, 2.0), (5.5, 9.0)], least=1.0) == [(1.0, 2.0), (5.0, 9.0)]


@pytest.mark.parametrize(("low", "high"), [(0.3, 9.0), (1e-9, 1e30), (0.9, 1.1e3), (5e-324, 1e-300)])
@pytest.mark.parametrize("height", [48, 125])
def test_log_axes_have_few_round_ticks_inside(low, high, height):
    axes = Figure(figsize=(8, height / 72), dpi=72).add_axes((0, 0, 1, 1))
    value_axis(axes, np.array([low, high]))
    bottom, top = axes.get_ylim()
    ticks = [tick for tick in axes.get_yticks() if bottom <= tick <= top]
    assert 1 <= len(ticks) <= height / 16, "at most as many as there is room for their labels"
    assert all(f"{tick:.0e}"[0] in "125" and float(f"{tick:.0e}") == pytest.approx(tick) for tick in ticks)
