"""The sliding median and MAD are exact."""

from __future__ import annotations

import random

import pytest

from guard.observe.robust_window import RobustWindow


def reference(values: list[float]) -> tuple[float, float]:
    median = sorted(values)[len(values) // 2]
    return median, sorted(abs(value - median) for value in values)[len(values) // 2]


def numbers(seed: int, count: int) -> list[float]:
    """Coarse values, so that ties are frequent, with a few far outliers."""
    source = random.Random(seed)
    return [round(source.gauss(0, 2), 1) * (1000 if source.random() < 0.03 else 1) for _ in range(count)]


@pytest.mark.parametrize("size", [1, 2, 3, 8, 24, 101])
def test_median_and_mad_equal_a_full_sort_after_every_push(size: int) -> None:
    window = RobustWindow(size)
    values = numbers(size, 400)
    for count, value in enumerate(values, start=1):
        window.push(value)
        kept = values[max(0, count - size) : count]
        assert window.median_mad() == reference(kept)
        assert window.median == reference(kept)[0]
        assert len(window) == len(kept)


def test_ranks_equal_a_full_sort() -> None:
    values = numbers(7, 300)
    window = RobustWindow(100, values)
    kept = sorted(values[-100:])
    assert (window.lowest, window.highest(1), window.highest(4)) == (kept[0], kept[-1], kept[-4])
    assert window.highest(1000) == kept[-1]


@pytest.mark.parametrize("slope", [0.0, 1.0, -50.0])
def test_roughness_measures_noise_whatever_the_trend(slope: float) -> None:
    source = random.Random(1)
    noise = [source.gauss(0, 100) for _ in range(4000)]
    rough = RobustWindow(4000, [slope * i + value for i, value in enumerate(noise)]).roughness()
    assert rough == pytest.approx(100 / 0.6147, rel=0.12)


def test_roughness_of_a_single_value_is_zero() -> None:
    assert RobustWindow(5, [3.0]).roughness() == 0.0


def test_a_minority_of_outliers_does_not_move_median_and_mad_far() -> None:
    window = RobustWindow(21, [float(i) for i in range(11)] + [1e9] * 10)
    median, mad = window.median_mad()
    assert median == 10
    assert mad == 10


def test_saved_window_continues_identically() -> None:
    values = numbers(3, 200)
    window = RobustWindow(50, values[:120])
    restored = RobustWindow(50)
    restored.load_state_dict(window.state_dict())
    for value in values[120:]:
        assert restored.push(value) == window.push(value)
    assert restored.values() == window.values()


def test_a_cleared_window_starts_empty() -> None:
    window = RobustWindow(5, [1.0, 2.0, 3.0])
    window.clear()
    window.push(7.0)
    assert (len(window), window.median_mad()) == (1, (7.0, 0.0))


def test_a_window_without_room_is_refused() -> None:
    with pytest.raises(ValueError, match="set size to 1 or more"):
        RobustWindow(0)
