"""A learning rate that is too high from the start: cut where the guard may, named where it may not."""

from __future__ import annotations

import copy
import json
import logging
import math
import re
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from pydantic import ValidationError
from torch import Tensor, nn
from torch.nn import functional as F

from guard import GradientGuard, GuardConfig, StepReport
from guard.decide.ladder import EscalationLadder
from guard.decide.rate_watch import RateWatch
from guard.decide.start_rate import StartRate
from guard.records import OK
from guard.types import Decision, Travelled
from tests.guard.decide.test_new_level import DIGITS
from tests.guard.loops import NEVER, adamw, differences, guarded_run, plain_run

RIGHT = 0.1
STEPS = 120


def cnn() -> nn.Module:
    return nn.Sequential(
        nn.Unflatten(1, (1, 8, 8)),
        nn.Conv2d(1, 16, 3, padding=1),
        nn.BatchNorm2d(16),
        nn.ReLU(),
        nn.Conv2d(16, 32, 3, stride=2, padding=1),
        nn.BatchNorm2d(32),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(512, 10),
    )


def cosine(step: int) -> float:
    return (1 + math.cos(math.pi * step / STEPS)) / 2


class Digits:
    """A small network on scikit-learn's digits, with a schedule; the last 400 are held out."""

    def __init__(self, rate: float, *, seed: int = 0, warm_up: int = 1, **options: Any) -> None:
        torch.manual_seed(seed)
        self.model = cnn()
        self.optimizer = torch.optim.SGD(self.model.parameters(), lr=rate, momentum=0.9)
        self.schedule = torch.optim.lr_scheduler.LambdaLR(
            self.optimizer, lambda step: min(1.0, (step + 1) / warm_up) * cosine(step)
        )
        self.guard = GradientGuard(self.model, self.optimizer, scheduler=self.schedule, **options)
        self.batches = torch.Generator().manual_seed(seed)
        self.reports: list[StepReport] = []

    def loss(self) -> Tensor:
        ids = torch.randint(1397, (32,), generator=self.batches)
        return F.cross_entropy(self.model(DIGITS[0][ids].float() / 16), DIGITS[1][ids])

    def train(self, attempts: int = STEPS) -> Digits:
        for _ in range(attempts):
            self.optimizer.zero_grad()
            self.guard.backward(self.loss())
            self.reports.append(self.guard.step())
        return self

    def train_steps(self) -> Digits:
        """Until all steps of the schedule stand."""
        while self.guard.steps < STEPS:
            self.train(1)
        return self

    def held_out(self) -> float:
        self.model.eval()
        with torch.no_grad():
            return float(F.cross_entropy(self.model(DIGITS[0][1397:].float() / 16), DIGITS[1][1397:]))


@pytest.mark.parametrize("times", [30, 100, 300])
@pytest.mark.parametrize("warm_up", [1, 20])
def test_a_rate_that_is_far_too_high_is_cut_until_the_run_learns(times: float, warm_up: int) -> None:
    right = Digits(RIGHT, warm_up=warm_up, config={"rate": "off"}).train().held_out()
    plain = Digits(times * RIGHT, warm_up=warm_up, config={"mode": "off"}).train().held_out()
    cut = Digits(times * RIGHT, warm_up=warm_up, config={"rate": "act"}).train_steps()
    assert cut.held_out() < 1.3 * right
    assert not plain < 2 * cut.held_out(), "this rate spoils the plain run"
    assert cut.guard.totals.steps_lost < STEPS


def test_a_right_rate_is_never_touched() -> None:
    for seed in range(10):
        run = Digits(RIGHT, seed=seed, config={"rate": "act"}).train(60)
        assert not any(run.guard.totals.rollbacks.values())
        assert {report.recovery["lr_scale"] for report in run.reports} == {1.0}
    plain = plain_run(adamw).train_plain(60)
    assert not differences(plain.state(), guarded_run({"rate": "act"}, adamw).train(60).state())


def test_the_incident_says_so_and_the_schedule_never_sees_the_cut(tmp_path: Path) -> None:
    journal = tmp_path / "incidents.jsonl"
    run = Digits(100 * RIGHT, config={"rate": "act"}, journal=journal).train(40)
    rows = map(json.loads, journal.read_text().splitlines())
    cuts = [row for row in rows if re.search("times too high|from the start with", row.get("reason", ""))]
    assert cuts
    assert {row["action"] for row in cuts} == {"rolled_back"}
    assert {row["rolled_back_to"] for row in cuts} == {0}
    assert cuts[-1]["recovery"]["lr_scale"] == pytest.approx(3.0 ** -len(cuts))
    assert run.guard.totals.rollbacks["memory"] >= len(cuts)
    assert run.optimizer.param_groups[0]["lr"] == pytest.approx(100 * RIGHT * cosine(run.guard.steps))
    assert run.reports[-1].recovery["lr_scale"] == pytest.approx(3.0 ** -len(cuts))
    factors = [row["recovery"]["rate_factor"] for row in cuts]
    assert factors == pytest.approx([3.0**-n for n in range(1, len(cuts) + 1)])
    assert run.reports[-1].to_row()["rate_factor"] == min(factors)
    assert "the learning rate is about 30 times too high; training goes on at 0.37 of 10" in cuts[2]["reason"]


class Recurrent(nn.Module):
    """A layer of LSTM that repeats its input one step later."""

    def __init__(self) -> None:
        super().__init__()
        self.tokens, self.lstm = nn.Embedding(16, 16), nn.LSTM(16, 32, batch_first=True)
        self.head = nn.Linear(32, 16)

    def forward(self, tokens: Tensor) -> Tensor:
        return self.head(self.lstm(self.tokens(tokens))[0])[:, 1:].flatten(0, 1)


def recurrent_loss(rate: float, mode: str) -> float:
    torch.manual_seed(0)
    model = Recurrent()
    optimizer = torch.optim.SGD(model.parameters(), lr=rate, momentum=0.9)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, cosine)
    guard = GradientGuard(model, optimizer, {"rate": mode}, scheduler=schedule)
    while guard.steps < STEPS:
        tokens = torch.randint(16, (16, 24))
        optimizer.zero_grad()
        guard.backward(F.cross_entropy(model(tokens), tokens[:, :-1].flatten()))
        last = guard.step().loss
    return last


def test_a_recurrent_network_that_the_clip_keeps_near_its_first_loss_is_seen() -> None:
    best = min(recurrent_loss(rate, "off") for rate in (1.0, 3.0))
    assert recurrent_loss(100.0, "act") < best + 0.3
    assert recurrent_loss(100.0, "off") > best + 1.0


@pytest.mark.parametrize(("distance", "found"), [(3.0, True), (1.3, False), (None, False)])
def test_a_loss_that_does_not_fall_is_evidence_only_where_the_weights_have_left_their_scale(
    distance: float | None, found: bool
) -> None:
    rule = StartRate()
    moved = None if distance is None else Travelled(distance, 9)
    findings = [rule.observe(2.3, 1.0, travelled=lambda: moved) for _ in range(10)]
    assert [finding is not None for finding in findings] == [False] * 9 + [found]


@pytest.mark.parametrize(("pace", "found"), [(0.2, True), (math.nan, True), (0.03, False), (None, False)])
def test_a_first_loss_that_was_lucky_is_no_evidence_while_the_weights_move_as_in_training(
    pace: float | None, found: bool
) -> None:
    rule = StartRate()
    losses = (0.003, 0.06, 0.05, 0.08, 0.02)
    moved = None if pace is None else Travelled(2 * pace, 2)
    assert any(rule.observe(loss, 1.0, travelled=lambda: moved) for loss in losses) == found


def test_the_weights_of_a_run_that_learns_are_not_measured() -> None:
    rule = StartRate()
    for step in range(40):
        rule.observe(2.3 - 0.05 * step, 1.0, travelled=lambda: pytest.fail("measured"))


@pytest.mark.parametrize(
    ("times", "named"), [(10, "about 3 times too high: try 0.33"), (100, "about 27 times")]
)
def test_a_guard_that_may_not_act_names_the_rate_once_and_changes_nothing(
    times: float, named: str, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.WARNING, "guard"):
        Digits(times * RIGHT).train(9)
    (line,) = [message for message in caplog.messages if "learning rate" in message]
    assert f"the learning rate {times * RIGHT:.2g} is probably {named}" in line
    states = []
    for rate in ("warn", "off"):
        run = Digits(10 * RIGHT, config={"rate": rate}).train(40)
        states.append(dict(run.model.state_dict()))
    assert not differences(*states)


def test_the_advice_to_set_what_is_set_is_not_given(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING, "guard"):
        for rate in ("warn", "act"):
            shadow = Digits(30 * RIGHT, config={"rate": rate, "mode": "shadow"}).train(9)
            assert shadow.reports[-1].rate_advice < 1.0
    warn, act = (message for message in caplog.messages if "learning rate" in message)
    assert warn.endswith("try 0.33, or set rate: act")
    assert act.endswith("try 0.33; mode: shadow changes nothing")
    assert advised(GuardConfig(mode="exact", rate="act")).endswith("; no healthy state is left to return to")


def advised(config: GuardConfig, *, scale: float = 1.0) -> str:
    """At a loss that climbs from 1 to 4 at a rate of 0.3, of which ``scale`` is the guard's."""
    judge = partial(
        RateWatch(config, EscalationLadder(config.budget, "skip"), layers=1).judge,
        step=0,
        scale=scale,
        can_roll_back=False,
        moved=None,
        travelled=lambda: Travelled(9.0, 9),
        way_back=lambda: None,
    )
    *_, (_, decision) = (judge(OK, Decision("apply", "ok"), loss, 0.3) for loss in (1.0, 2.0, 4.0))
    return decision.reason


def test_the_rate_that_is_called_too_high_is_the_one_that_was_set() -> None:
    """Not what a cooldown has made of it."""
    named = [advised(GuardConfig(), scale=scale).rpartition(": the learning")[2] for scale in (1.0, 0.5)]
    assert named[0].startswith(" rate 0.3 is probably about 3 times too high: try 0.1,")
    assert named[1].startswith(" rate 0.6 is probably about 6 times too high: try 0.1,")


def test_what_was_named_is_no_smaller_at_a_later_climb() -> None:
    reports = Digits(300 * RIGHT).train(100).reports
    warnings = [report for report in reports if report.verdict.kind == "warning"]
    assert len(warnings) == 2
    assert warnings[0].rate_advice == warnings[1].rate_advice == pytest.approx(1 / 27)


@pytest.mark.parametrize("kind", ["nan_loss", "poisoned_batch", "scaled_gradient"])
def test_a_bad_batch_among_the_first_is_no_rate(kind: str) -> None:
    for step in (0, 1, 2, 5):
        run = guarded_run({"rate": "act"}, faults=[{"kind": kind, "step": step}]).train(40)
        assert {report.recovery["lr_scale"] for report in run.reports} == {1.0}


def test_a_loss_that_climbs_by_design_gets_its_rate_back_and_is_not_held_up() -> None:
    torch.manual_seed(0)
    model = nn.Linear(8, 1)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    guard = GradientGuard(model, optimizer, {"rate": "act", "clip": {"max_norm": NEVER}})
    reports = []
    for _ in range(200):
        optimizer.zero_grad()
        rise = 1.0 + 0.2 * guard.steps
        guard.backward(rise + F.mse_loss(model(torch.randn(64, 8)), torch.zeros(64, 1)))
        reports.append(guard.step())
    assert reports[-1].recovery["lr_scale"] == 1.0
    assert guard.totals.steps_lost < 40
    assert reports[-1].action in ("applied", "clipped")


def test_a_bounded_loss_that_climbs_as_far_at_a_third_of_an_absurd_rate_is_none_by_design() -> None:
    """Pairs of views of 32 samples: the loss is log(32) wherever the network maps all to one point."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(16, 32), nn.ReLU(), nn.Linear(32, 8))
    optimizer = torch.optim.SGD(model.parameters(), lr=300 * 0.1, momentum=0.9)
    guard = GradientGuard(model, optimizer, {"rate": "act", "clip": {"max_norm": NEVER}})
    reports = []
    while guard.steps < 40:
        samples = torch.randn(32, 16)
        views = (F.normalize(model(samples + 0.1 * torch.randn(32, 16)), dim=1) for _ in range(2))
        optimizer.zero_grad()
        guard.backward(F.cross_entropy(next(views) @ next(views).T / 0.2, torch.arange(32)))
        reports.append(guard.step())
    assert not any("at lower rates too" in report.incident.reason for report in reports if report.incident)
    assert reports[-1].rate_factor < 0.1
    assert reports[-1].loss < 0.7 * reports[0].loss


def test_what_was_cut_stays_cut_after_a_resume() -> None:
    first = Digits(100 * RIGHT, config={"rate": "act"}).train(60)
    again = Digits(100 * RIGHT, config={"rate": "act"})
    for part in ("model", "optimizer", "schedule"):
        getattr(again, part).load_state_dict(copy.deepcopy(getattr(first, part).state_dict()))
    again.guard.load_state_dict(copy.deepcopy(first.guard.state_dict()))
    again.batches.set_state(first.batches.get_state())
    assert not differences(first.train(20).model.state_dict(), again.train(20).model.state_dict())
    assert again.reports[-1].recovery["lr_scale"] < 0.1


def test_a_deferred_guard_cannot_return_to_the_start() -> None:
    with pytest.raises(ValidationError, match="needs mode: exact"):
        GuardConfig(mode="deferred", rate="act")


@pytest.mark.parametrize("first", [0.0, -1.0])
def test_a_first_loss_that_is_no_scale_decides_nothing(first: float) -> None:
    """As of a policy that is compared with itself at first."""
    rule = StartRate()
    assert all(rule.observe(first, 0.1, travelled=lambda: None) is None for _ in range(100))
    assert not rule.open
