"""The detector is a function of the numbers it saw, and its memory can be saved."""

from __future__ import annotations

import json
import math
import random

import pytest
from pydantic import ValidationError

from guard.config import DetectConfig
from guard.decide.detector import SpikeDetector
from tests.guard.synthetic_runs import Step, gaussian, run, student, verdicts_of


def eventful(seed: int, *, sign: float = 1.0) -> list[Step]:
    """Noise, outliers, gaps, NaN, a new level, a fading gradient."""
    source = random.Random(seed)
    steps = run(1500, seed=seed, noise=student(0.05, 3), norm=lambda i: 0.5 if i < 1000 else 1e-4)
    for i, step in enumerate(steps):
        chance = source.random()
        if chance < 0.02:
            steps[i] = Step(step.loss * 5, source.choice([None, 7.0, math.inf]), 0.1)
        elif chance < 0.03:
            steps[i] = Step(math.nan, step.grad_norm, 9.0)
        elif i > 700:
            steps[i] = Step(step.loss * 4 * sign, step.grad_norm, 0.1)
    return steps


@pytest.mark.parametrize("sign", [1.0, -1.0], ids=["positive", "turns negative"])
@pytest.mark.parametrize("cut", [0, 3, 11, 200, 705, 709, 1100])
def test_a_restored_detector_continues_identically(cut: int, sign: float) -> None:
    steps = eventful(seed=cut, sign=sign)
    detector = SpikeDetector()
    for step in steps[:cut]:
        detector.observe(*step)
    restored = SpikeDetector()
    restored.load_state_dict(json.loads(json.dumps(detector.state_dict(), allow_nan=False)))
    for step in steps[cut:]:
        assert restored.observe(*step) == detector.observe(*step)
    assert restored.state_dict() == detector.state_dict()


def test_a_restored_detector_samples_an_update_alike_where_the_norm_was_not_measured() -> None:
    detector, restored = SpikeDetector(), SpikeDetector()
    for step in run(100, norm=lambda i: 9.0 if i == 99 else 1.0):
        detector.observe(*step)
    restored.load_state_dict(detector.state_dict())
    assert restored.observe(2.0, None, 0.3) == detector.observe(2.0, None, 0.3)
    assert restored.state_dict() == detector.state_dict()


def test_a_saved_state_does_not_change_with_the_detector() -> None:
    detector = SpikeDetector()
    for step in eventful(seed=1)[:900]:
        detector.observe(*step)
    saved = detector.state_dict()
    frozen = json.dumps(saved)
    for step in eventful(seed=2):
        detector.observe(*step)
    assert json.dumps(saved) == frozen


def test_after_a_rollback_the_detector_decides_as_if_the_lost_steps_had_not_been() -> None:
    steps = run(600, norm=lambda _: 0.5)
    detector = SpikeDetector()
    for step in steps[:300]:
        detector.observe(*step)
    snapshot = detector.state_dict()
    for _ in range(40):
        detector.observe(50.0, 20.0)
    detector.load_state_dict(snapshot)
    assert [detector.observe(*step) for step in steps[300:]] == verdicts_of(steps)[300:]


@pytest.mark.parametrize("sign", [1.0, -1.0], ids=["positive", "turns negative"])
def test_foreseeing_a_step_changes_nothing_and_gives_the_verdict_of_observing_it(sign: float) -> None:
    detector = SpikeDetector()
    for loss, grad_norm, update_norm in eventful(seed=5, sign=sign):
        before, ratios = json.dumps(detector.state_dict()), detector.ratios()
        foreseen = detector.foresee(loss, grad_norm, update_norm)
        assert (json.dumps(detector.state_dict()), detector.ratios()) == (before, ratios)
        verdict = detector.observe(loss, grad_norm, update_norm)
        assert foreseen == verdict or verdict.kind in ("drift", "vanishing")


def test_what_was_foreseen_is_judged_again_after_a_change_on_purpose() -> None:
    detector = SpikeDetector()
    for step in run(300, norm=lambda _: 0.5):
        detector.observe(*step)
    loaded = detector.state_dict()
    assert detector.foresee(9.0, 0.5).kind == "suspect"
    detector.expect_change(20)
    assert detector.foresee(9.0, 0.5).kind == detector.observe(9.0, 0.5).kind == "ok"
    detector.load_state_dict(loaded)
    assert detector.observe(9.0, 0.5).kind == "suspect"


def test_equal_numbers_give_equal_verdicts() -> None:
    assert verdicts_of(eventful(seed=3)) == verdicts_of(eventful(seed=3))


def test_typical_is_the_median_of_accepted_values_and_none_until_then() -> None:
    detector = SpikeDetector(DetectConfig(min_history=12, level_rows=24))
    for i in range(11):
        detector.observe(2.0, 1.0 + i % 3)
        assert detector.typical("grad_norm") is None
    detector.observe(2.0, 2.0)
    assert detector.typical("grad_norm") == pytest.approx(2.0)
    assert detector.typical("loss") == pytest.approx(2.0)
    assert detector.typical("update_norm") is None
    for _ in range(5):
        detector.observe(2.0, 1e6)
    assert detector.typical("grad_norm") == pytest.approx(2.0)


def test_extreme_numbers_get_a_verdict_without_an_error() -> None:
    source = random.Random(4)
    extremes = [0.0, 5e-324, 1e-300, 1.0, 1e300, 1.7976931348623157e308]
    detector = SpikeDetector()
    for _ in range(3000):
        sign = 1 if source.random() < 0.9 else -1
        verdict = detector.observe(
            sign * source.choice(extremes), source.choice(extremes), source.choice(extremes)
        )
        assert not math.isnan(verdict.score)
    json.dumps(detector.state_dict(), allow_nan=False)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("window", 4),
        ("level_rows", 2),
        ("sigmas", 0),
        ("sigmas", math.inf),
        ("min_excess", -0.1),
        ("patience", 0),
    ],
)
def test_senseless_values_are_refused(field: str, value: float) -> None:
    with pytest.raises(ValidationError, match=field):
        DetectConfig.model_validate({field: value})


def test_history_that_is_not_kept_is_refused_with_what_to_set() -> None:
    with pytest.raises(ValidationError, match="set min_history to at most level_rows and window"):
        DetectConfig(min_history=30)


def test_unknown_fields_are_refused_and_the_configuration_is_frozen() -> None:
    with pytest.raises(ValidationError, match='did you mean "sigmas"'):
        DetectConfig.model_validate({"sigma": 5})
    with pytest.raises(ValidationError, match="frozen"):
        DetectConfig().sigmas = 3.0  # type: ignore[misc]


def test_every_field_is_documented() -> None:
    assert all(field.description for field in DetectConfig.model_fields.values())


@pytest.mark.parametrize(
    "config", [DetectConfig(window=10, level_rows=10, min_history=5, patience=4), DetectConfig(window=2000)]
)
def test_small_and_large_windows_work(config: DetectConfig) -> None:
    steps = run(1000, noise=gaussian(0.02), norm=lambda _: 1.0)
    verdicts = verdicts_of([*steps, Step(steps[-1].loss * 3, 8.0), Step(steps[-1].loss * 3, 8.0)], config)
    assert {v.kind for v in verdicts[:1000]} <= {"ok", "suspect"}
    assert verdicts[-1].kind == "spike"
