"""Faults of every kind are detected, in time, and by the right name."""

from __future__ import annotations

import math
import random

import pytest

from tests.guard.synthetic_runs import Step, falling, gaussian, run, verdicts_of

AT = 500


def verdicts_after(healthy: list[Step], fault: list[Step]) -> list[str]:
    verdicts = verdicts_of([*healthy, *fault])
    assert {v.kind for v in verdicts[: len(healthy)]} <= {"ok"}
    return [v.kind for v in verdicts[len(healthy) :]]


def healthy(*, sigma: float = 0.03, seed: int = 0) -> list[Step]:
    return run(AT, seed=seed, noise=gaussian(sigma), norm=lambda _: 0.5)


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize(("sigma", "factor"), [(0.01, 1.5), (0.03, 1.6), (0.1, 2.5), (0.2, 4.0)])
def test_a_jump_of_the_loss_alone_is_a_spike_in_its_second_row(
    sigma: float, factor: float, seed: int
) -> None:
    before = healthy(sigma=sigma, seed=seed)
    level = falling(AT)
    assert verdicts_after(before, [Step(level * factor, 0.5)] * 2)[-1] == "spike"


@pytest.mark.parametrize("seed", range(5))
def test_loss_and_norm_together_are_a_spike_at_once(seed: int) -> None:
    before = healthy(seed=seed)
    assert verdicts_after(before, [Step(before[-1].loss * 2, 2.5)]) == ["spike"]


def test_a_norm_that_leads_by_a_row_or_two_confirms_the_loss() -> None:
    before = healthy()
    level = before[-1].loss
    for lead in (1, 2):
        quiet = [Step(level, 0.5)] * (lead - 1)
        kinds = verdicts_after(before, [Step(level, 10.0), *quiet, Step(level * 2, 0.5)])
        assert kinds[0] == "suspect"
        assert kinds[-1] == "spike"


def test_one_row_of_the_loss_alone_is_suspect() -> None:
    before = healthy()
    level = before[-1].loss
    kinds = verdicts_after(before, [Step(level * 1.6, 0.5), *[Step(level, 0.5)] * 3])
    assert kinds == ["suspect", "ok", "ok", "ok"]


def test_two_of_three_rows_are_enough() -> None:
    before = healthy()
    level = before[-1].loss
    kinds = verdicts_after(before, [Step(level * 1.9, 0.5), Step(level * 1.15, 0.5), Step(level * 1.9, 0.5)])
    assert kinds[-1] == "spike"


def test_one_overwhelming_row_is_enough() -> None:
    before = healthy()
    assert verdicts_after(before, [Step(before[-1].loss * 20, 0.5)]) == ["spike"]


@pytest.mark.parametrize("rows", [5, 20, 50])
def test_a_loss_that_triples_over_some_rows_is_a_spike(rows: int) -> None:
    before = healthy()
    level = before[-1].loss
    climb = [Step(level * 3 ** ((i + 1) / rows), 0.5) for i in range(rows)]
    assert "spike" in verdicts_after(before, climb)[: rows // 2 + 1]


def test_a_short_rise_below_the_threshold_must_last() -> None:
    before = healthy(sigma=0.01)
    level = before[-1].loss
    kinds = verdicts_after(before, [Step(level * 1.18, 0.5)] * 8)
    assert kinds[:2] == ["ok", "ok"]
    assert "spike" in kinds


def test_a_norm_that_explodes_before_the_loss_is_a_spike_in_its_second_row() -> None:
    before = healthy()
    level = before[-1].loss
    assert verdicts_after(before, [Step(level, 10.0), Step(level, 12.0)]) == ["suspect", "spike"]


def test_a_huge_update_is_a_spike_at_once_for_it_has_been_applied() -> None:
    before = [Step(step.loss, 0.5, 0.01) for step in healthy()]
    verdict = verdicts_of([*before, Step(before[-1].loss, 0.5, 1.0)])[-1]
    assert (verdict.kind, verdict.signal) == ("spike", "update_norm")


def test_a_fast_rise_of_a_loss_below_zero_is_a_spike() -> None:
    source = random.Random(2)
    steps = [Step(-300 + source.gauss(0, 1)) for _ in range(AT)]
    assert [v.kind for v in verdicts_of([*steps, Step(-270.0), Step(-265.0)])][-1] == "spike"


def test_a_slow_rise_is_drift_and_reported_once_for_each_threshold_it_climbs() -> None:
    steps = run(3000, loss=lambda i: 2.0 if i < AT else 2.0 * (1 + (i - AT) / 1000), noise=gaussian(0.01))
    alarms = [(i, v) for i, v in enumerate(verdicts_of(steps)) if v.kind != "ok"]
    assert {v.kind for _, v in alarms} == {"drift"}
    assert alarms[0][0] < AT + 400
    assert 3 <= len(alarms) <= 8
    assert alarms[0][1].baseline == pytest.approx(2.0, rel=0.05)


def test_an_accepted_new_level_is_not_reported_again_as_drift() -> None:
    steps = run(1500, loss=lambda i: 2.0 if i < AT else 5.0, noise=gaussian(0.01))
    assert "drift" not in {v.kind for v in verdicts_of(steps)}


@pytest.mark.parametrize("rows", [1, 30, 300])
def test_a_gradient_that_fades_while_the_loss_stays_is_vanishing(rows: int) -> None:
    def norm(i: int) -> float:
        return 0.5 * 10 ** (-4 * min(1.0, max(0, i - AT) / rows))

    verdicts = verdicts_of(run(2000, loss=lambda _: 2.3, norm=norm))
    alarms = [(i, v) for i, v in enumerate(verdicts) if v.kind != "ok"]
    assert {v.kind for _, v in alarms} == {"vanishing"}
    assert alarms[0][1].signal == "grad_norm"
    assert AT < alarms[0][0] < AT + rows + 60


def test_a_gradient_of_exactly_zero_is_vanishing() -> None:
    steps = run(1000, loss=lambda _: 2.3, norm=lambda i: 0.5 if i < AT else 0.0)
    assert [v.kind for v in verdicts_of(steps) if v.kind != "ok"] == ["vanishing"]


def test_a_gradient_that_falls_along_with_the_loss_has_not_vanished() -> None:
    def shrink(i: int) -> float:
        return 10 ** (-4 * i / 1000)

    assert {v.kind for v in verdicts_of(run(1000, loss=shrink, norm=shrink))} == {"ok"}


def test_the_baseline_is_in_the_unit_of_the_signal() -> None:
    before = healthy()
    verdict = verdicts_of([*before, Step(before[-1].loss * 4, 5.0)])[-1]
    assert verdict.baseline == pytest.approx(before[-1].loss, rel=0.1)
    assert math.isfinite(verdict.score)
