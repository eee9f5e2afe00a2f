"""What other detectors get wrong: each published failure is a property here."""

from __future__ import annotations

import math

import pytest

from guard.config import DetectConfig
from guard.decide.detector import SpikeDetector
from tests.guard.synthetic_runs import Step, gaussian, kinds, run, student, verdicts_of

INF, NAN = math.inf, math.nan


def steady(value: float = 1.0) -> float:
    return value


def warm(rows: int = 200, **options: object) -> SpikeDetector:
    detector = SpikeDetector()
    for step in run(rows, loss=lambda _: 1.0, noise=gaussian(0.02), norm=lambda _: 0.5):
        detector.observe(*step)
    return detector


@pytest.mark.parametrize("bad", [NAN, INF, -INF])
@pytest.mark.parametrize("signal", ["loss", "grad_norm", "update_norm"])
def test_a_nonfinite_value_is_detected_from_the_first_step_on(bad: float, signal: str) -> None:
    values = {"loss": 1.0, "grad_norm": 0.5, "update_norm": 0.1}
    for detector in (SpikeDetector(), warm()):
        verdict = detector.observe(**{**values, signal: bad})
        assert (verdict.kind, verdict.signal, verdict.score) == ("nonfinite", signal, INF)


def test_a_nan_leaves_no_trace_in_the_judgement_of_later_steps() -> None:
    healthy = run(400, norm=lambda _: 0.5)
    poisoned = [*healthy[:100], *[Step(NAN, NAN)] * 5, *healthy[100:]]
    verdicts = verdicts_of(poisoned)
    assert verdicts[:100] + verdicts[105:] == verdicts_of(healthy)


def test_a_loss_that_stays_nan_is_detected_every_time() -> None:
    assert kinds([Step(NAN, NAN)] * 300) == ["nonfinite"] * 300


def test_an_outlier_does_not_raise_its_own_threshold() -> None:
    detector = warm()
    assert detector.observe(10.0, 0.5).kind != "ok"
    for _ in range(5):
        assert detector.observe(1.0, 0.5).kind == "ok"
    first = detector.observe(20.0, 0.5)
    assert first.kind in ("suspect", "spike")
    assert first.score > 20 * DetectConfig().sigmas / 5
    assert detector.observe(20.0, 0.5).kind == "spike"


@pytest.mark.parametrize("level", [1e-6, 1.0, 1e6, -1.0])
def test_zero_variance_does_not_make_a_small_change_an_outlier(level: float) -> None:
    steps = [Step(level, 1.0)] * 200 + [Step(level + abs(level) * 1e-3, 1.001)] * 3
    assert set(kinds(steps)) == {"ok"}


@pytest.mark.parametrize("rows", [30, 60, 120, 400])
def test_a_downward_trend_does_not_hide_a_ninefold_jump(rows: int) -> None:
    falling = [Step(10 / i) for i in range(1, rows)]
    jump = 9 * falling[-1].loss
    verdicts = verdicts_of([*falling, Step(jump), Step(jump)])
    assert {v.kind for v in verdicts[:-2]} == {"ok"}
    assert verdicts[-2].kind in ("suspect", "spike")
    assert verdicts[-1].kind == "spike"


def test_outliers_of_the_warmup_do_not_blow_up_the_threshold() -> None:
    healthy = run(80, loss=lambda _: 2.0, norm=lambda _: 0.5)
    spoiled = [Step(step.loss * 50, 25.0) if i in (3, 9) else step for i, step in enumerate(healthy)]
    verdicts = verdicts_of([*spoiled, Step(8.0, 5.0), Step(8.0, 5.0)])
    assert [v.kind for v in verdicts[-2:]] == ["spike", "spike"]


@pytest.mark.parametrize("factor", [1.6, 3.0, 10.0])
def test_a_new_level_that_holds_is_accepted_after_a_bounded_number_of_alarms(factor: float) -> None:
    patience = DetectConfig().patience
    healthy = run(600, loss=lambda i: 1.0 if i < 300 else factor, noise=gaussian(0.02))
    flagged = [i for i, kind in enumerate(kinds(healthy)) if kind in ("suspect", "spike")]
    assert 1 <= len(flagged) <= patience
    assert flagged[0] == 300
    assert flagged[-1] < 300 + 4 * patience


def test_an_outlier_past_an_accepted_level_is_detected_again() -> None:
    steps = run(600, loss=lambda i: 1.0 if i < 300 else 3.0, noise=gaussian(0.02))
    assert kinds([*steps, Step(9.0), Step(9.0)])[-1] == "spike"


def test_no_history_locks_every_step_out() -> None:
    wild = run(3000, noise=student(0.5, 2), norm=lambda _: 1.0)
    verdicts = kinds(wild)
    assert verdicts.count("ok") > 0.9 * len(verdicts)


@pytest.mark.parametrize(
    ("value", "kind"), [(3.0, "suspect"), (INF, "nonfinite"), (-INF, "nonfinite"), (NAN, "nonfinite")]
)
def test_the_published_grid_of_early_spikes_is_detected(value: float, kind: str) -> None:
    losses = [1 / i for i in range(1, 10)]
    losses[4] = value
    verdicts = kinds(Step(loss) for loss in losses)
    assert verdicts[4] == kind
    assert verdicts[:4] + verdicts[5:] == ["ok"] * 8


def test_a_slow_wave_is_healthy_and_six_sigmas_above_it_is_not() -> None:
    losses = [5 + math.sin(0.1 * i) for i in range(50)]
    mean = sum(losses) / 50
    sigma = math.sqrt(sum((loss - mean) ** 2 for loss in losses) / 50)
    verdicts = kinds([*map(Step, losses), Step(mean + 6 * sigma + 1)])
    assert verdicts[:50] == ["ok"] * 50
    assert verdicts[50] in ("suspect", "spike")


@pytest.mark.parametrize(("rows", "factor"), [(1, 20.1), (2, 7.4)])
def test_one_or_two_values_say_little_about_the_next(rows: int, factor: float) -> None:
    history = [Step(2.3, 1.0)] * rows
    assert kinds([*history, Step(2.3 * factor * 0.99, factor * 0.99)])[-1] == "ok"
    assert kinds([*history, Step(2.3 * factor * 1.01, 1.0)])[-1] == "suspect"
    assert kinds([*history, Step(2.3, factor * 1.01)])[-1] == "suspect"


@pytest.mark.parametrize("rows", [3, 5, 11])
def test_before_there_is_history_only_gross_excess_counts(rows: int) -> None:
    history = [Step(2.3 - 0.01 * i, 1.0) for i in range(rows)]
    assert kinds([*history, Step(4.6, 1.0)])[-1] == "ok"
    assert kinds([*history, Step(9.2, 1.0)])[-1] == "suspect"
    assert kinds([*history, Step(9.2, 1.0), Step(30.0, 1.0)])[-1] == "spike"
    assert kinds([*history, Step(69.0, 1.0)])[-1] == "spike"


def test_the_first_step_is_never_compared_with_itself() -> None:
    assert kinds([Step(1e12, 1e9)]) == ["ok"]


def test_a_norm_that_starts_at_zero_is_no_baseline() -> None:
    """The learning rate of a warm-up, and so the update norm, may start at zero."""
    steps = [Step(2.3, 1.0, 0.0)] * 3 + [Step(2.3, 1.0, 1e-3 * (i + 1)) for i in range(100)]
    assert set(kinds(steps)) == {"ok"}
