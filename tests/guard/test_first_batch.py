"""A duel needs the batches of its start again; where others come, the run keeps its rate and says why."""

from __future__ import annotations

import math
from typing import Any

from guard.decide.duel import FirstBatch
from guard.decide.start_rate import StartRate
from tests.guard.decide.test_duel import SEEMS, Run
from tests.guard.decide.test_overshoot import Excerpts
from tests.guard.loops import differences


class Loader(Excerpts):
    """Its iterator goes on, whatever state is loaded: as that of a ``for`` loop over a loader."""

    def load_state_dict(self, state: dict[str, Any]) -> None:
        pass


def returns(run: Run) -> list[int]:
    """After how many batches the run returned to its start."""
    return [report.attempt for report in run.reports if report.action == "rolled_back"]


def test_a_loader_that_goes_on_ends_the_duel_at_once_and_the_run_keeps_its_rate() -> None:
    run = Run(SEEMS, data=Loader(1)).until(90)
    tried, other = run.returns
    assert "from the start with" in tried
    assert "the first batch does not come again" in other
    assert other.endswith("all that the loop continues from: training goes on at 0.2")
    (returned,) = returns(run)
    assert {report.rate_factor for report in run.reports[returned:]} == {1.0}


def test_it_then_trains_as_a_plain_loop_does_on_the_batches_that_follow() -> None:
    run = Run(SEEMS, data=Loader(1)).until(90)
    plain = Run(SEEMS, "off")
    for _ in range(returns(run)[0]):
        plain.data.batch()
    plain.until(90)
    assert not differences(dict(run.model.state_dict()), dict(plain.model.state_dict()))


def test_a_loss_differs_by_more_than_the_order_of_its_sums_or_is_of_the_same_batch() -> None:
    first = FirstBatch()
    assert not first.other(0, 2.0), "unknown"
    first.note(0, 2.0, oldest=0)
    assert not first.other(0, 2.0 * (1 + 1e-6))
    assert "its loss is 2.001, it was 2" in first.other(0, 2.001)


def test_a_first_batch_that_is_not_finite_is_skipped_both_times() -> None:
    first = FirstBatch()
    first.note(5, math.nan, 5)
    first.note(5, 2.0, 5)
    assert first.other(5, 2.0) == ""


def test_the_start_is_the_oldest_state_and_its_first_loss_the_one_that_counts() -> None:
    first = FirstBatch()
    for step, loss, oldest in ((0, 2.0, 0), (1, 1.9, 0), (0, 7.0, 0)):  # the last after a bad batch
        first.note(step, loss, oldest)
    assert (first.step, first.loss) == (0, 2.0)
    first.note(20, 1.5, oldest=20)  # after a resume
    assert (first.step, first.loss) == (20, 1.5)


def test_after_a_resume_the_first_batch_is_that_of_the_resume() -> None:
    rule = StartRate(oldest_step=lambda: 20)
    rule.observe(2.0, 0.1, travelled=lambda: None, step=20)
    rule.load_state_dict(rule.state_dict())
    assert rule._first.step == -1
    rule.observe(1.5, 0.1, travelled=lambda: None, step=20)
    assert (rule._first.step, rule._first.loss) == (20, 1.5)
