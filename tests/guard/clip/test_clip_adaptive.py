"""Limits that follow the global norm: ``auto``, ``autoclip`` and ``zclip``."""

from __future__ import annotations

import copy
import json
import math
import random
from typing import Any

import numpy as np
import pytest

from guard import DetectConfig, SpikeDetector
from guard.clip.adaptive import ZClipper
from guard.clip.base import Clipper
from tests.guard.clip.clip_cases import clipper_of, limits, norms

BAD = (math.nan, math.inf)
KINDS: dict[str, dict[str, Any]] = {
    "auto": {"kind": "auto"},
    "autoclip": {"kind": "autoclip", "history_steps": 20},
    "zclip": {"kind": "zclip", "warmup_steps": 8},
}


def noisy(count: int, seed: int = 0, level: float = 1.0, spread: float = 0.2) -> list[float]:
    pick = random.Random(seed)
    return [level * math.exp(pick.gauss(0, spread)) for _ in range(count)]


def detected(clipper: Clipper, values: list[float]) -> list[tuple[str, float | None]]:
    """Verdict and limit of each step, with the typical norm that a detector has of the run."""
    detector = SpikeDetector(DetectConfig())
    seen = []
    for value in values:
        verdict = detector.observe(1.0, value)
        typical = detector.clip_level(clipper.config.factor)
        plan = clipper.plan(norms(value), typical=typical, accepted=verdict.kind == "ok")
        seen.append((verdict.kind, plan.limit))
    return seen


@pytest.mark.parametrize("level", [1e-8, 1.0, 1e8])
def test_auto_clips_a_tenfold_blip_to_the_factor_times_the_median(level: float) -> None:
    values = noisy(200, level=level)
    values[150] *= 10
    limit = detected(clipper_of(factor=3.0), values)[150][1]
    assert limit == pytest.approx(3 * float(np.median(values[126:150])), rel=0.1)
    assert limit < values[150]


@pytest.mark.parametrize("level", [1e-8, 1.0, 1e8])
@pytest.mark.parametrize("seed", range(3))
def test_auto_never_bites_on_a_steady_run(seed: int, level: float) -> None:
    values = noisy(1000, seed, level)
    found = detected(clipper_of(), values)
    assert all(limit is None or value <= limit for value, (_, limit) in zip(values, found, strict=True))
    assert sum(limit is not None for _, limit in found) > 950


def slowly_exploding(level: float) -> list[float]:
    """Steady, then fifty times as large within as many steps, and steady there."""
    return [value * level * 50 ** min(max(i - 40, 0) / 50, 1) for i, value in enumerate(noisy(200))]


@pytest.mark.parametrize(("level", "highest"), [(0.15, 1.0), (0.01, 1.0), (20.0, 120.0)])
def test_auto_does_not_follow_a_slow_explosion_beyond_its_ceiling(level: float, highest: float) -> None:
    values = slowly_exploding(level)
    held = [limit for _, limit in detected(clipper_of(), values) if limit is not None]
    free = [limit for _, limit in detected(clipper_of(ceiling=None), values) if limit is not None]
    assert held[:20] == free[:20], "before it explodes nothing is different"
    assert max(held) <= highest * 1.2
    assert free[-1] == pytest.approx(3 * 50 * level, rel=0.2)
    assert held[-1] == pytest.approx(min(free[-1], highest), rel=0.2)


def test_the_ceiling_of_auto_stays_with_the_run_and_not_with_what_came_later() -> None:
    whole, resumed = clipper_of(), clipper_of()
    assert limits(whole, [1.0, 1.0, 1.0], typical=2.0) == [6.0] * 3
    resumed.load_state_dict(json.loads(json.dumps(whole.state_dict())))
    assert limits(resumed, [1.0, 1.0], typical=50.0) == [12.0, 12.0]
    assert limits(resumed, [1.0], typical=0.5) == [1.5]
    older = clipper_of()
    older.load_state_dict({"kind": "auto"})  # of a version without a ceiling
    assert limits(older, [1.0, 1.0], typical=5.0) == [15.0, 15.0]


@pytest.mark.parametrize("percentile", [0, 10, 50, 97.5, 100])
@pytest.mark.parametrize("history", [1, 7, 1000])
def test_autoclip_is_numpys_percentile_of_its_history(percentile: float, history: int) -> None:
    clipper = clipper_of(kind="autoclip", percentile=percentile, history_steps=history)
    values = noisy(60)
    expected = [np.percentile(values[max(0, i + 1 - history) : i + 1], percentile) for i in range(60)]
    assert limits(clipper, values) == pytest.approx(expected, rel=1e-12)


def test_autoclip_at_100_percent_never_bites() -> None:
    values = noisy(300)
    clipper = clipper_of(kind="autoclip", percentile=100)
    for value, limit in zip(values, limits(clipper, values), strict=True):
        assert limit is not None
        assert value <= limit


def test_autoclip_has_no_limit_before_its_first_norm() -> None:
    clipper = clipper_of(kind="autoclip")
    assert limits(clipper, [5.0], accepted=False) == [None]
    assert limits(clipper, [2.0]) == [2.0]


@pytest.mark.parametrize("name", KINDS)
def test_only_accepted_finite_norms_are_remembered(name: str) -> None:
    values = noisy(60)
    clean, dirty = clipper_of(**KINDS[name]), clipper_of(**KINDS[name])
    for i, value in enumerate(values):
        if i % 3 == 0:
            limits(dirty, BAD)
            limits(dirty, [100 * value], accepted=False)
            limits(dirty, [100 * value], typical=1.0, suspect=True)
        assert limits(clean, [value]) == limits(dirty, [value])
    assert clean.state_dict() == dirty.state_dict()


@pytest.mark.parametrize("name", KINDS)
@pytest.mark.parametrize("at", [3, 8, 40])
def test_a_state_continues_identically(name: str, at: int) -> None:
    whole, resumed = clipper_of(**KINDS[name]), clipper_of(**KINDS[name])
    values = noisy(80, spread=0.5)
    limits(whole, values[:at])
    resumed.load_state_dict(json.loads(json.dumps(whole.state_dict())))
    saved = copy.deepcopy(resumed.state_dict())
    before = resumed.state_dict()
    assert limits(whole, values[at:]) == limits(resumed, values[at:])
    assert whole.state_dict() == resumed.state_dict()
    assert before == saved


def test_the_state_of_another_kind_starts_empty() -> None:
    clipper = clipper_of(**KINDS["zclip"])
    filled = clipper_of(**KINDS["autoclip"])
    limits(filled, noisy(30))
    clipper.load_state_dict(filled.state_dict())
    assert clipper.state_dict() == clipper_of(**KINDS["zclip"]).state_dict()


def zclip(*seen: float, **config: Any) -> ZClipper:
    clipper = clipper_of(kind="zclip", **{"warmup_steps": 4, **config})
    assert isinstance(clipper, ZClipper)
    limits(clipper, seen)
    return clipper


def test_zclip_moves_its_mean_only_by_what_is_left_of_a_spike() -> None:
    clipper = zclip(1.0, 1.0, 1.0, 1.0)
    (limit,) = limits(clipper, [3.0])
    assert limit == pytest.approx(1.0, abs=1e-3)
    assert clipper.mean == pytest.approx(0.97 * 1.0 + 0.03 * limit, rel=1e-12)


def test_zclip_agrees_with_the_equations() -> None:
    """A direct transcription of the paper's section 3, on a run whose deviation is never near zero."""
    values = noisy(300, spread=0.4)
    alpha, thresh, warmup = 0.97, 2.5, 25
    mean, variance = float(np.mean(values[:warmup])), float(np.var(values[:warmup]))
    expected = [math.inf] * warmup
    for norm in values[warmup:]:
        z = (norm - mean) / math.sqrt(variance)
        kept = mean + thresh**2 / z * math.sqrt(variance) if z > thresh else norm
        expected.append(kept if z > thresh else math.inf)
        mean = alpha * mean + (1 - alpha) * kept
        variance = alpha * variance + (1 - alpha) * (kept - mean) ** 2
    clipper = zclip(warmup_steps=warmup)
    found = [
        limit if limit is not None and norm > limit else math.inf
        for norm, limit in zip(values, limits(clipper, values), strict=True)
    ]
    assert found == pytest.approx(expected, rel=1e-9)
    assert sum(limit < math.inf for limit in found) > 5
    assert clipper.mean == pytest.approx(mean, rel=1e-9)


def test_zclip_does_not_clip_while_it_warms_up() -> None:
    assert limits(zclip(warmup_steps=5), [1.0, 9.0, 1.0, 50.0, 1.0, 1.0])[:5] == [None] * 5


def test_nan_never_poisons_zclip() -> None:
    clipper = zclip(*noisy(40))
    limits(clipper, [math.nan, math.inf])
    (limit,) = limits(clipper, [100.0])
    assert limit is not None
    assert limit < 2.0


@pytest.mark.parametrize("level", [1e-8, 1.0, 1e8])
def test_a_quiet_warm_up_does_not_make_a_hair_more_a_spike(level: float) -> None:
    clipper = zclip(*[level] * 4)
    for norm in [1.0001 * level] * 100:
        (limit,) = limits(clipper, [norm])
        assert limit is not None
        assert norm <= limit


@pytest.mark.parametrize("factor", [1.03, 1.3, 3.0, 100.0])
def test_a_new_level_is_accepted_within_a_warm_up(factor: float) -> None:
    clipper = zclip(*noisy(50, spread=0.01), warmup_steps=10)
    values = noisy(60, seed=1, level=factor, spread=0.01)
    found = limits(clipper, values)
    assert all(limit is not None for limit in found)
    late = zip(values[20:], found[20:], strict=True)
    assert sum(norm > limit for norm, limit in late if limit is not None) <= 4
    assert clipper.mean == pytest.approx(factor, rel=0.05)
