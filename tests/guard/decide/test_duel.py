"""Two rates from one start: the lower one wins beyond chance, whatever happens in the middle of the duel."""

from __future__ import annotations

import copy
import math
import re
from collections.abc import Sequence
from pathlib import Path
from random import Random
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn.parallel import DistributedDataParallel
from torch.optim import SGD

from guard import GradientGuard, StepReport
from guard.decide.duel import COMPARED, ends_lower
from guard.decide.start_rate import StartRate
from guard.types import Travelled
from tests.guard.decide.test_overshoot import Excerpts, Text, loss_of
from tests.guard.loops import differences
from tests.guard.ranks import on_ranks

STEPS = 80
SEEMS = 0.2
"""A rate that only seems too high."""
TOO_HIGH = 2.0
"""One that is cut on evidence, before its duel."""
STEEP = 0.08
"""Added to each gradient: the norm of all is suspect."""


class Run:
    """A small transformer whose rate the guard may change."""

    def __init__(
        self, rate: float, mode: str = "act", *, rank: int | None = None, data: Excerpts | None = None
    ) -> None:
        torch.manual_seed(1)
        self.rate = rate
        model = Text(dropout=0.1)
        self.model = model if rank is None else DistributedDataParallel(model)
        self.data = data or Excerpts(1 if rank is None else 10 + rank)
        self.optimizer = SGD(model.parameters(), lr=rate, momentum=0.9)
        self.guard = GradientGuard(self.model, self.optimizer, {"rate": mode}, data=self.data)
        self.reports: list[StepReport] = []

    def attempt(self, *, bad: bool = False, steep: float = 0.0) -> StepReport:
        texts, factor = self.data.batch(), math.nan if bad else 1.0

        def loss() -> Tensor:
            slope = sum((steep * (p - p.detach())).sum() for p in self.model.parameters())
            return factor * loss_of(self.model, texts) + slope

        self.optimizer.zero_grad()
        self.guard.backward(loss())
        self.reports.append(self.guard.step(loss))
        return self.reports[-1]

    def until(self, steps: int = STEPS) -> Run:
        while self.guard.steps < steps:
            self.attempt()
        return self

    def until_a_third_is_tried(self) -> Run:
        while not (self.guard.steps == 20 and self.guard.totals.rollbacks["memory"] == 1):
            self.attempt()
        return self

    def end(self) -> float:
        """The mean of the last losses."""
        return sum(report.loss for report in self.reports[-10:]) / 10

    @property
    def returns(self) -> list[str]:
        """Why it returned to its start, or changed its rate."""
        incidents = [report.incident for report in self.reports if report.incident is not None]
        return [incident.reason for incident in incidents if "first" in incident.reason]

    def parts(self) -> tuple[Any, ...]:
        return self.model, self.optimizer, self.data, self.guard


def on_a_rank(rank: int, world_size: int, folder: Path) -> Any:
    """How a run ends whose rate the guard may change, what it returned for, and how one without ends."""
    act, off = (Run(SEEMS, mode, rank=rank).until() for mode in ("act", "off"))
    return dict(act.model.state_dict()), act.returns, dict(off.model.state_dict())


@pytest.mark.slow
def test_two_ranks_end_a_duel_alike_and_as_if_nothing_had_been_tried(tmp_path: Path) -> None:
    first, second = on_ranks(2, on_a_rank, tmp_path)
    assert len(first[1]) == 2, "to the third and back"
    assert not differences(first, second)
    assert not differences(first[0], first[2])


def resumed(run: Run) -> Run:
    """Another one, from the state of this one."""
    again = Run(run.rate)
    for fresh, saved in zip(again.parts(), run.parts(), strict=True):
        fresh.load_state_dict(copy.deepcopy(saved.state_dict()))
    return again


@pytest.fixture(scope="module")
def undisturbed() -> Run:
    return Run(SEEMS).until()


@pytest.fixture(scope="module")
def undisturbed_cut() -> Run:
    return Run(TOO_HIGH).until()


def test_a_run_that_is_resumed_while_a_third_is_tried_gets_its_rate_back_and_says_so() -> None:
    again = resumed(Run(SEEMS).until_a_third_is_tried())
    assert again.guard.steps == 20
    again.until(80)
    (compared,) = again.returns
    assert re.fullmatch(r".* end at 2\.7\d+, .* third of the rate at 2\.8\d+: .* goes on at 0\.2", compared)
    assert again.reports[-1].rate_factor == 1.0
    assert not any(report.action == "rolled_back" for report in again.reports)


def test_a_run_that_is_resumed_in_its_first_steps_has_its_duel_from_there() -> None:
    again = resumed(Run(SEEMS).until(20)).until(110)
    assert [report.rolled_back_to for report in again.reports if report.action == "rolled_back"] == [20, 20]
    assert "again from the start with 0.2" in again.returns[-1]
    assert again.reports[-1].rate_factor == 1.0


@pytest.mark.parametrize("after", [4, 6])
def test_a_run_whose_rate_was_cut_ends_as_well_wherever_in_its_duel_it_is_resumed(
    after: int, undisturbed_cut: Run
) -> None:
    run = Run(TOO_HIGH)
    for _ in range(20 * after):
        run.attempt()
    again = resumed(run).until()
    assert again.reports[-1].rate_factor == pytest.approx(undisturbed_cut.reports[-1].rate_factor, rel=0.01)
    assert again.end() < 1.05 * undisturbed_cut.end()


@pytest.mark.parametrize("attempt", [48, 90])
def test_a_batch_that_is_not_finite_does_not_decide_a_duel(attempt: int, undisturbed: Run) -> None:
    run = Run(SEEMS)
    while run.guard.steps < STEPS:
        run.attempt(bad=len(run.reports) == attempt)
    assert [report.action for report in run.reports].count("skipped") == 1
    ends = [reason.rpartition(":")[2] for reason in undisturbed.returns]
    assert [reason.rpartition(":")[2] for reason in run.returns] == ends
    assert run.reports[-1].rate_factor == 1.0


def run_with_steep_steps(mode: str) -> Run:
    run = Run(SEEMS, mode)
    while run.guard.steps < STEPS:
        run.attempt(steep=STEEP if run.guard.steps in (60, 61) else 0.0)
    return run


def test_what_is_remembered_of_spikes_is_as_at_the_start() -> None:
    act, off = (run_with_steep_steps(mode) for mode in ("act", "off"))
    assert len(act.returns) == 2, "to the third and back"
    ends = [
        [(report.verdict.kind, report.action) for report in run.reports[-STEPS - 1 :]] for run in (act, off)
    ]
    assert ends[0] == ends[1]
    assert ends[1][60:63] == [("suspect", "skipped"), ("suspect", "clipped"), ("suspect", "clipped")]
    assert not differences(dict(act.model.state_dict()), dict(off.model.state_dict()))


def test_snapshots_in_the_middle_leave_the_start_where_it_is(undisturbed: Run) -> None:
    run = Run(SEEMS)
    while run.guard.steps < STEPS:
        if run.attempt().step % 10 == 5:
            run.guard.snapshot()
    assert run.returns == undisturbed.returns
    assert not differences(dict(run.model.state_dict()), dict(undisturbed.model.state_dict()))


@pytest.mark.parametrize(("attempt", "returns"), [(30, 0), (100, 2)])
def test_after_a_change_on_purpose_nothing_is_compared_and_a_rate_on_trial_is_restored(
    attempt: int, returns: int
) -> None:
    run = Run(SEEMS)
    while run.guard.steps < STEPS:
        if len(run.reports) == attempt:
            run.guard.expect_change("other data")
        run.attempt()
    assert len(run.returns) == returns
    assert run.reports[-1].rate_factor == 1.0
    if returns:
        assert run.returns[-1].endswith("cannot be compared: training goes on at 0.2")
        assert [report.rate_factor for report in run.reports[100:102]] == [1.0, 1.0]


@pytest.mark.parametrize("attempt", [30, 70])
def test_steps_that_an_incident_undid_are_not_compared(attempt: int) -> None:
    run = Run(SEEMS)
    while run.guard.steps < STEPS:
        if len(run.reports) == attempt:
            with torch.no_grad():
                run.model.head.weight.add_(torch.randn_like(run.model.head.weight), alpha=30.0)
        run.attempt()
    undone = [i for i, report in enumerate(run.reports) if report.action == "rolled_back"]
    judged = [i for i, report in enumerate(run.reports) if "end at" in getattr(report.incident, "reason", "")]
    assert min(abs(i - attempt) for i in undone) < 4, "the incident is rolled back"
    assert all(judged[-1] - i > 50 for i in undone if i < judged[-1]), "50 steps in a row"
    assert run.reports[-1].rate_factor == 1.0


def climbing(rule: StartRate, losses: Sequence[float], rate: float = 0.9) -> list[tuple[int, str]]:
    """At which losses something is found, and what, in weights that move fast."""
    found = []
    for step, loss in enumerate(losses):
        finding = rule.observe(loss, rate, travelled=lambda: Travelled(1.0, 1), step=step)
        found += [] if finding is None else [(step, finding.reason)]
    return found


PASSES = [2.0, 4.0, 5.0, 6.0, 5.0, 4.0, 3.0, 2.5, 2.0, 1.8]
RECOVERS, LEARNS_NOTHING = [*PASSES, *[0.9] * 66], [*PASSES, *[1.8] * 41]
STAYS = [2.0, *[5.0] * 40]


def test_a_climb_from_which_the_loss_recovers_is_left_to_a_duel_where_there_can_be_one() -> None:
    step, reason = climbing(StartRate(), RECOVERS)[0]
    assert (step, reason.endswith("again from the start")) == (2, True)
    duels = StartRate(oldest_step=lambda: 0, replays=True)
    assert not climbing(duels, RECOVERS)
    ((step, reason),) = climbing(duels, [0.9])
    assert reason == "the first steps end at 0.9: from the start with 0.3 of 0.9"


def overshooting(losses: Sequence[float], **options: Any) -> list[tuple[int, str]]:
    """The same of steps that overshoot a little, with a start to return to."""
    rule = StartRate(oldest_step=lambda: 0, replays=True, **options)
    for _ in range(8):
        rule.overshoot.add(-0.5, -1.0)
    return climbing(rule, losses)


def test_a_rate_that_only_seems_too_high_is_compared_after_75_attempts_or_what_a_warm_up_leaves() -> None:
    assert [step for step, _ in overshooting([2.0, *[1.0] * 80])] == [76]
    assert not overshooting([2.0, *[0.09] * 80]), "good enough after 50"
    assert len(overshooting([2.0, *[1.0] * 50, *[0.09] * 30])) == 1
    for warm_up, expected in ((40, 99), (49, 99), (60, None)):
        rule = StartRate(oldest_step=lambda: 0, replays=True)
        for _ in range(8):
            rule.overshoot.add(-0.5, -1.0)
        found = []
        for step in range(150):
            rate = min(1.0, (step + 1) / warm_up)
            finding = rule.observe(1.0, rate, travelled=lambda: None, step=step)
            found += [] if finding is None else [step]
        assert found[:1] == [expected][: expected is not None], warm_up


def test_steps_that_shorten_by_themselves_are_judged_when_they_have() -> None:
    settles, lost = [2.0, *[5.0] * 40, *[1.0] * 9], [2.0, *[50.0] * 40]
    assert climbing(StartRate(), settles), "other steps do not"
    assert not climbing(StartRate(shortens=True), settles)
    assert [step for step, _ in climbing(StartRate(shortens=True), lost)][:2] == [2, 5], "at once"
    assert climbing(StartRate(shortens=True), [2.0, *[5.0] * 60])[0][0] == 49


def test_a_climb_after_which_nothing_is_learned_is_evidence_whatever_a_third_of_the_rate_does() -> None:
    rule = StartRate(oldest_step=lambda: 0, replays=True)
    assert not climbing(rule, LEARNS_NOTHING)
    ((_, reason),) = climbing(rule, [1.8])
    assert reason == "the loss went from 1.8 to 1.8 in the first steps: again from the start"


def test_a_climb_that_lasts_or_is_steep_is_evidence_at_once() -> None:
    lasts = StartRate(oldest_step=lambda: 0, replays=True)
    assert climbing(lasts, STAYS)[0][0] == 19
    steep = StartRate(oldest_step=lambda: 0, replays=True)
    assert climbing(steep, [2.0, 30.0, 40.0, 40.0])[0][0] == 2


def test_a_third_that_is_tried_is_not_judged_by_its_noise_since_three_times_it_has_lasted() -> None:
    rule = StartRate(oldest_step=lambda: 0, replays=True)
    steep, lasts = [2.0, 30.0, 40.0], [2.0, *[1.0] * 26]
    assert [len(climbing(rule, steep)) for _ in range(2)] == [1, 1], "again, then with a third"
    ((_, tried),) = climbing(rule, lasts, rate=0.3)
    assert tried == "the first steps end at 1: from the start with 0.1 of 0.9"
    ((_, kept),) = climbing(rule, [2.0, 9.0, 9.0, 9.0, *[1.0] * 23], rate=0.1)
    assert kept.endswith("again from the start with 0.3 of 0.9")


_draw = Random(0)
BATCHES = [_draw.lognormvariate(0.0, 0.5) for _ in range(COMPARED)]


def times(factor: float, noise: float = 0.0, seed: int = 1) -> list[float]:
    draw = Random(seed)
    return [factor * loss * draw.lognormvariate(0.0, noise) for loss in BATCHES]


@pytest.mark.parametrize(("factor", "lower"), [(0.8, True), (0.94, True), (0.96, False), (1.1, False)])
def test_on_the_same_batches_six_percent_are_seen_through_batches_that_differ_by_far_more(
    factor: float, lower: bool
) -> None:
    assert max(BATCHES) > 3 * min(BATCHES)
    assert ends_lower(times(factor), times(1.0), cut=False) == lower


def test_losses_that_differ_by_chance_alone_seldom_count_as_lower() -> None:
    wins = [ends_lower(times(1.0, 0.5, seed), times(1.0, 0.5, seed + 1000), cut=False) for seed in range(500)]
    assert sum(wins) <= 25


@pytest.mark.parametrize("bad", [math.inf, math.nan])
@pytest.mark.parametrize("cut", [True, False])
def test_a_batch_that_is_not_finite_decides_nothing_and_a_run_of_them_never_wins(
    bad: float, cut: bool
) -> None:
    for place in (0, 15, 19):
        new, before = times(0.5), times(1.0)
        assert ends_lower([*new[:place], bad, *new[place + 1 :]], before, cut=cut)
        assert ends_lower(new, [*before[:place], bad, *before[place + 1 :]], cut=cut)
        assert not ends_lower(before, [*new[:place], bad, *new[place + 1 :]], cut=cut)
    assert not ends_lower([*times(0.5)[:7], *[bad] * 13], times(1.0), cut=cut)


def test_where_the_rate_before_is_known_to_be_too_high_three_percent_are_enough() -> None:
    noisy = times(0.97, 0.1)
    assert ends_lower(times(0.97), times(1.0), cut=True)
    assert not ends_lower(noisy, times(1.0), cut=False)


def test_where_steps_shorten_by_themselves_a_low_rate_must_lead_by_more() -> None:
    assert [ends_lower(times(f), times(1.0), cut=False, lead=0.2) for f in (0.82, 0.78)] == [False, True]
    for shortens, end, wins in ((False, 0.9, True), (True, 0.9, False), (True, 0.7, True)):
        assert third_wins([2.0, *[1.0] * 76], [2.0, *[end] * 76], shortens=shortens) == wins


def test_of_a_rate_that_trains_well_a_third_must_lead_by_a_third_and_more() -> None:
    well, cut_later = [2.0, *[0.15] * 76], [2.0, *[0.3] * 50, *[0.15] * 26]
    assert [third_wins(well, [2.0, *[end] * 76]) for end in (0.12, 0.08)] == [False, True]
    assert third_wins(cut_later, [2.0, *[0.3] * 30, *[0.12] * 46]), "after 50 it did not yet"


def third_wins(losses: list[float], with_a_third: list[float], **options: Any) -> bool:
    """Whether the rate is cut, where steps overshoot a little."""
    rule = StartRate(oldest_step=lambda: 0, replays=True, **options)
    for _ in range(8):
        rule.overshoot.add(-0.5, -1.0)
    assert len(climbing(rule, losses)) == 1, "a third is tried"
    lost = climbing(rule, with_a_third, rate=0.3)
    return not any("again from the start" in reason for _, reason in lost) and rule.cuts > 0


def test_losses_of_other_batches_win_beyond_the_noise_of_the_batches_alone() -> None:
    """As after a rollback on the way."""
    wins = [
        ends_lower(sample(times(factor), seed), times(1.0), cut=False, paired=False)
        for factor in (0.4, 0.9)
        for seed in range(50)
    ]
    assert (sum(wins[:50]), sum(wins[50:])) == (50, 0)


def sample(losses: list[float], seed: int) -> list[float]:
    return Random(seed).sample(losses, len(losses))


def test_a_third_that_ends_far_lower_is_kept_after_a_rollback_on_the_way() -> None:
    for end, kept in ((0.2, True), (0.9, False)):
        rule = StartRate(oldest_step=lambda: 0, replays=True)
        for _ in range(8):
            rule.overshoot.add(-0.5, -1.0)
        assert len(climbing(rule, [2.0, *(1.0 + batch for batch in BATCHES), *[1.0] * 31])) == 1
        rule.returned(50)
        found = climbing(rule, [2.0, *(end + batch for batch in BATCHES), *[end] * 31], rate=0.3)
        restored = [reason.endswith("again from the start with 0.9") for _, reason in found]
        assert restored == [True] * (not kept)
        assert rule.cuts == kept


def test_a_few_losses_decide_nothing() -> None:
    assert not ends_lower([0.1] * 7, [1.0] * COMPARED, cut=False)
