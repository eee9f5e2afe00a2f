"""Losses near zero, lone outliers, and what the detector says it cannot see."""

from __future__ import annotations

import json
import math
import random
from collections.abc import Callable

import pytest

from guard import SpikeDetector
from guard.config import DetectConfig

ALARMING = ("spike", "suspect")


def found(
    losses: list[float], config: DetectConfig | None = None, norm: float = 1.0
) -> list[tuple[int, str]]:
    detector = SpikeDetector(config)
    verdicts = [detector.observe(loss, norm) for loss in losses]
    return [(i, v.kind) for i, v in enumerate(verdicts) if v.kind in ALARMING]


def noisy(level: float, rows: int, seed: int = 0, sigma: float = 0.02) -> list[float]:
    source = random.Random(seed)
    return [level * math.exp(source.gauss(0, sigma)) for _ in range(rows)]


@pytest.mark.parametrize("outliers", [(150,), (150, 210), (30, 45), (150, 210, 250), (200, 203)])
@pytest.mark.parametrize("size", [3.0, 30.0, 44_000.0])
@pytest.mark.parametrize("seed", range(3))
def test_lone_outliers_are_no_habit(outliers: tuple[int, ...], size: float, seed: int) -> None:
    losses = noisy(3.0, 400, seed)
    for row in outliers:
        losses[row] *= size
    losses = [loss * (2.0 if row >= 300 else 1.0) for row, loss in enumerate(losses)]
    assert {300, 301} & {row for row, _ in found(losses)}


def rounded(source: random.Random, row: int) -> float:
    """GRPO: beta times KL, logged with four digits."""
    return 0.0 if row < 40 else round(0.0016 * ((row - 20) / 400) ** 1.5 * math.exp(source.gauss(0, 0.5)), 4)


def exact(source: random.Random, row: int) -> float:
    """The same, not rounded: the first batch of each policy has a KL of exactly zero."""
    return 0.0 if row % 20 == 0 else 1e-6 * 1.03**row * math.exp(source.gauss(0, 0.5))


def late(_: random.Random, row: int) -> float:
    """A term that is off at first."""
    return 0.0 if row < 60 else 0.5 + 0.01 * math.sin(row)


@pytest.mark.parametrize("loss", [rounded, exact, late])
@pytest.mark.parametrize("seed", range(3))
def test_a_loss_that_leaves_zero_is_no_spike(loss: Callable[[random.Random, int], float], seed: int) -> None:
    source = random.Random(seed)
    assert found([loss(source, row) for row in range(250)]) == []


@pytest.mark.parametrize("seed", range(3))
def test_a_memorised_loss_may_return_to_where_it_is_still_small(seed: int) -> None:
    falling = [2.3 * math.exp(-row / 12) + 1e-6 for row in range(200)]
    bounce = [1e-6 + 0.009 * math.exp(-((row - 10) ** 2) / 20) for row in range(30)]
    source = random.Random(seed)
    losses = [loss * math.exp(source.gauss(0, 0.1)) for loss in falling + bounce + falling[-60:] + bounce]
    assert found(losses) == []
    assert found([*losses, 2.0, 2.0])[0][0] in (len(losses), len(losses) + 1)


def test_an_explosion_of_a_memorised_loss_is_one() -> None:
    losses = [2.3 * math.exp(-row / 12) + 1e-4 for row in range(200)]
    assert found([*losses, 0.5, 0.6])[-1] == (201, "spike")


def test_the_floor_is_configurable() -> None:
    losses = [*noisy(1e-4, 100), 4e-3, 4e-3]
    assert found(losses)[-1] == (101, "spike")  # a loss that began that low
    assert found(losses, DetectConfig(loss_floor=0.01)) == []
    source = random.Random(0)
    crossing = [source.gauss(0, 1e-4) for _ in range(100)] + [0.01] * 2
    assert found(crossing) == []
    assert found(crossing, DetectConfig(loss_floor=0.0))[-1] == (101, "spike")


def test_it_says_how_far_the_loss_must_rise_for_an_alarm() -> None:
    detector = SpikeDetector()
    assert detector.alarm_factor() is None
    for loss in noisy(3.0, 200):
        detector.observe(loss)
    factor = detector.alarm_factor()
    assert factor is not None
    assert factor == pytest.approx(1.26, abs=0.05)
    assert detector.foresee(3.0 * factor * 1.05).kind == "suspect"
    assert detector.foresee(3.0 * factor * 0.9).kind == "ok"
    for _ in range(30):
        detector.observe(-1.0)
    assert detector.alarm_factor() is None


def test_a_relearned_level_is_the_new_one_at_once() -> None:
    detector = SpikeDetector()
    for loss in noisy(3.0, 200):
        detector.observe(loss, 1.0)
    detector.expect_change(20)
    assert [detector.observe(loss, 3.0).kind for loss in noisy(9.0, 20)] == ["ok"] * 20
    assert detector.typical("loss") == pytest.approx(9.0, rel=0.05)
    assert [detector.observe(loss, 3.0).kind for loss in noisy(9.0, 20)] == ["ok"] * 20
    assert [detector.observe(loss, 3.0).kind for loss in noisy(18.0, 2)][-1] == "spike"


def test_what_it_relearns_survives_a_round_trip() -> None:
    one, other = SpikeDetector(), SpikeDetector()
    for loss in noisy(3.0, 100):
        one.observe(loss, 1.0)
    one.expect_change(20)
    one.observe(9.0, 3.0)
    other.load_state_dict(one.state_dict())
    for loss in [*noisy(9.0, 40, seed=1), 50.0, 50.0]:
        assert one.observe(loss, 3.0) == other.observe(loss, 3.0)
    assert one.state_dict() == other.state_dict()


def test_below_the_floor_no_gradient_is_clipped_that_is_smaller_than_those_above_it() -> None:
    """A loss on its way to 1e-9 has gradients that fall as fast, and rise a thousandfold now and then."""
    detector = SpikeDetector()
    losses = [10.0 ** (-row / 50) for row in range(450)]
    for loss in losses:
        detector.observe(loss, math.sqrt(loss))
    other = SpikeDetector()
    other.load_state_dict(json.loads(json.dumps(detector.state_dict())))
    for each in (detector, other):
        level = each.clip_level(3.0)
        assert level is not None
        assert 0.05 < level < 0.2, "that of a loss of 0.01, not of 1e-9"
