"""A loss that climbs under too high a rate: announced before it is high, and eased where the guard may."""

from __future__ import annotations

import json
import math
import random
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any, Literal

import pytest
import torch
from torch import Tensor, nn

from guard import GradientGuard, StepReport
from guard.decide.climbing import Climb, Climbing
from tests.guard.healthy.trainings import mlp
from tests.guard.loops import adamw, differences, guarded_run, plain_run

LAYERS = 4
LOW = 120
"""Attempts after which the loss is at its lowest."""


def noisy(levels: Iterator[float], seed: int = 0) -> Iterator[float]:
    source = random.Random(seed)
    return (level * math.exp(source.gauss(0.0, 0.05)) for level in levels)


def warned(losses: Iterator[float], rates: Iterator[float]) -> list[int]:
    climbing = Climbing(LAYERS)
    pairs = zip(losses, rates, strict=False)
    return [at for at, (loss, rate) in enumerate(pairs) if climbing.observe(loss, rate) is not None]


def valley(attempt: int) -> float:
    """Falls to 1, then climbs by half a per cent an attempt."""
    return 1.0 + 2.0 * math.exp(-attempt / 20) if attempt < LOW else 1.005 ** (attempt - LOW)


def creeping(attempt: int) -> float:
    return float(0.01 * 1.01**attempt)


@pytest.mark.parametrize("seed", range(5))
def test_a_climb_under_a_creeping_rate_is_announced_before_the_loss_is_half_as_high_again(seed: int) -> None:
    losses = [*noisy(map(valley, range(300)), seed)]
    crossed = next(at for at in range(LOW, 300) if valley(at) > 1.5)
    found = warned(iter(losses), map(creeping, range(300)))
    assert LOW < found[0] <= crossed - 20


def test_one_climb_is_one_warning() -> None:
    assert len(warned(noisy(map(valley, range(300))), map(creeping, range(300)))) == 1


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize(
    ("loss", "rate"),
    [
        (valley, lambda _: 0.01),
        (lambda at: 3.0 * math.exp(-at / 200), lambda at: 0.01 * min(1.0, (at + 1) / 300)),
        (lambda at: 0.5 + 0.4 * (at % 100 < 20), lambda at: 0.01 * (1 - at % 100 / 100)),
        (lambda at: -1.0 - at / 100, creeping),
    ],
    ids=["constant rate", "warm-up", "warm restarts", "negative loss"],
)
def test_no_warning_where_the_rate_is_not_the_cause(loss: Any, rate: Any, seed: int) -> None:
    assert not warned(noisy(map(loss, range(600)), seed), map(rate, range(600)))


def test_a_rate_that_is_unknown_or_was_zero_at_first_gives_no_warning() -> None:
    losses = [*noisy(map(valley, range(300)))]
    assert not warned(iter(losses), (math.nan for _ in losses))
    assert not warned(iter(losses), (0.0 if at <= LOW + 30 else 0.01 for at in range(300)))


def test_it_continues_from_its_state_as_if_it_had_not_stopped() -> None:
    losses = [*noisy(map(valley, range(300)))]
    whole, first, second = Climbing(LAYERS), Climbing(LAYERS), Climbing(LAYERS)
    rates = [creeping(min(at, LOW)) for at in range(300)]
    far = [LONG if at == 145 else None for at in range(300)]
    rows = [*zip(losses, rates, far, strict=True)]
    expected = [whole.observe(*row) for row in rows]
    found = [first.observe(*row) for row in rows[:150]]
    second.load_state_dict(json.loads(json.dumps(first.state_dict())))
    found += [second.observe(*row) for row in rows[150:]]
    assert found == expected
    assert any(found)


LONG = 0.0101
"""A step of 4 layers that is just too long: it changes them by 2.02 % together."""


def measured(losses: list[float], moved: float, layers: int = LAYERS) -> list[Climb]:
    """Warnings of a constant rate of 0.01, whose updates are measured every 25 attempts."""
    climbing = Climbing(layers)
    climbs = [climbing.observe(loss, 0.01, moved if at % 25 == 0 else None) for at, loss in enumerate(losses)]
    return [climb for climb in climbs if climb is not None]


@pytest.mark.parametrize("seed", range(5))
def test_a_climb_under_long_updates_is_announced_at_a_constant_rate(seed: int) -> None:
    climbs = measured([*noisy(map(valley, range(300)), seed)], LONG)
    assert climbs[0].moved == LONG
    assert climbs[0].level < 1.3
    assert climbs[0].rate == pytest.approx(0.01 / 3)


def test_long_updates_are_none_while_the_loss_falls_and_a_climb_is_none_under_short_ones() -> None:
    climbs, falls = [*noisy(map(valley, range(300)))], [3.0 * math.exp(-at / 50) for at in range(300)]
    assert not measured(falls, 1.0)
    assert not measured(climbs, LONG / 1.1)


def test_the_same_distance_is_longer_in_a_deeper_network() -> None:
    climbs = [*noisy(map(valley, range(300)))]
    assert not measured(climbs, LONG / 2, layers=15)
    assert measured(climbs, LONG / 2, layers=16)
    assert not measured(climbs, LONG / 4, layers=1000), "none that deep was measured"


def plateau(height: float, swing: float) -> list[float]:
    """Falls to 1 and later rises by ``height``; swings about that, so that 0.35 swings are a deviation."""
    falls = [1.0 + 2.0 * math.exp(-at / 10) + height * (at >= LOW) for at in range(300)]
    return [level + swing * (-1) ** at for at, level in enumerate(falls)]


def test_the_less_the_rate_has_risen_the_farther_the_loss_must_have_climbed() -> None:
    rates = [[0.01 * (rise if at >= LOW else 1.0) for at in range(300)] for rise in (1.05, 1.3, 3.0)]
    two, many = plateau(0.2, 0.29), plateau(0.2, 0.05)
    assert [len(warned(iter(two), iter(rate))) for rate in rates] == [0, 0, 1]
    assert [len(warned(iter(many), iter(rate))) for rate in rates] == [0, 1, 1]
    half, jumped = plateau(0.05, 0.29), [10.0 if at >= LOW else 0.01 for at in range(300)]
    assert not warned(iter(half), iter(jumped)), "however far it has risen"


def test_the_longer_the_updates_the_smaller_a_climb_will_do() -> None:
    half = plateau(0.05, 0.29)
    assert not measured(half, LONG)
    assert measured(half, 3 * LONG)


def test_one_loss_alone_is_no_climb_however_long_the_updates_are() -> None:
    losses = [3.0 * math.exp(-at / 50) for at in range(300)]
    assert not measured([*losses[:LOW], 8.0, *losses[LOW + 1 :]], 10 * LONG)
    assert measured([*losses[:LOW], *[8.0] * 9, *losses[LOW + 9 :]], 10 * LONG)


@pytest.mark.parametrize("seed", range(5))
def test_a_rate_that_starts_again_is_compared_with_the_level_that_it_reaches(seed: int) -> None:
    """Four cycles of a cosine; the loss is low where the rate is, and the updates are always long."""
    rates = [0.01 * (1.01 + math.cos(math.pi * (at % 200) / 200)) for at in range(800)]
    losses = [*noisy((rate * 50 + 3.0 * math.exp(-at / 30) for at, rate in enumerate(rates)), seed)]
    climbing = Climbing(LAYERS)
    found = [
        climbing.observe(loss, rate, LONG if at % 25 == 0 else None)
        for at, (loss, rate) in enumerate(zip(losses, rates, strict=True))
    ]
    assert not any(found)
    assert measured(losses, LONG), "under a constant rate it has climbed"


def test_each_measurement_lowers_the_rate_once_and_the_climb_is_one_warning() -> None:
    climbing, rates = Climbing(LAYERS), []
    losses = [*noisy(map(valley, range(300)))]
    for at, loss in enumerate(losses):
        rate = 0.01 * climbing.hold
        climbing.observe(loss, rate, LONG if at in (150, 175) else None)
        climbing.hold = climbing.held(0.01)
        rates.append(climbing.hold)
    assert sorted(set(rates), reverse=True) == pytest.approx([1.0, 1 / 3, 1 / 9])
    assert len(measured(losses[:200], LONG)) == 1


def test_a_state_of_the_version_before_still_loads_and_holds_the_rate() -> None:
    climbing = Climbing(LAYERS)
    for at, loss in enumerate(noisy(map(valley, range(200)))):
        if climbing.observe(loss, rate := creeping(at)) is not None:
            climbing.hold = climbing.held(rate)
    state = climbing.state_dict()
    old = {key: value for key, value in state.items() if key not in ("cap", "moved")}
    loaded = Climbing(LAYERS)
    loaded.load_state_dict(old)
    assert loaded.held(1.0) == climbing.held(1.0) == state["rate"]


STEPS, RISE = 290, 1.02
ALONE = {
    "clip": {"kind": "off"},
    "detect": {"sigmas": 100, "min_excess": 100, "min_excess_norm": 100},
    "update_norm": "off",
}
"""Nothing else acts."""


class Regression:
    """Least squares with noise in the targets: the loss climbs with the rate long before it explodes."""

    def __init__(self, config: dict[str, Any] | None, *, journal: Path | None = None) -> None:
        torch.manual_seed(1)
        self.model = nn.Linear(16, 1)
        nn.init.constant_(self.model.weight, 0.5)
        self.optimizer = torch.optim.SGD(self.model.parameters(), lr=2e-3)
        self.data = torch.Generator().manual_seed(1)
        self.schedule = torch.optim.lr_scheduler.ExponentialLR(self.optimizer, RISE)
        self.guard = None
        if config is not None:
            self.guard = GradientGuard(
                self.model, self.optimizer, config, scheduler=self.schedule, journal=journal
            )
        self.reports: list[StepReport] = []
        self.losses: list[float] = []

    def loss(self) -> Tensor:
        inputs = torch.randn(16, 16, generator=self.data)
        noise = 0.5 * torch.randn(16, 1, generator=self.data)
        loss = (self.model(inputs) - inputs.sum(1, keepdim=True) - noise).square().mean()
        self.losses.append(float(loss.detach()))
        return loss

    def train(self, attempts: int) -> Regression:
        for _ in range(attempts):
            self.optimizer.zero_grad()
            loss = self.loss()
            if self.guard is None:
                loss.backward()
                self.optimizer.step()
                self.schedule.step()
            else:
                self.guard.backward(loss)
                self.reports.append(self.guard.step())
        return self

    @property
    def warnings(self) -> list[StepReport]:
        return [report for report in self.reports if report.verdict.kind == "warning"]

    def end(self) -> float:
        return sum(self.losses[-25:]) / 25


def test_a_warning_is_journaled_and_counted_and_changes_nothing(tmp_path: Path) -> None:
    journal = tmp_path / "incidents.jsonl"
    run = Regression(ALONE, journal=journal)
    for _ in range(STEPS):
        if run.warnings:
            break
        run.train(1)
    report = run.warnings[0]
    assert report.action == "applied"
    assert report.to_row()["verdict"] == "warning"
    (incident,) = map(json.loads, journal.read_text().splitlines())
    assert (incident["verdict"], incident["signal"], incident["action"]) == ("warning", "loss", "applied")
    assert "since the learning rate passed" in incident["reason"]
    assert run.guard is not None
    assert run.guard.totals.anomalies["loss"]["warning"] == 1
    plain = Regression(None).train(len(run.reports))
    assert not differences(plain.model.state_dict(), run.model.state_dict())


def test_the_rate_is_held_where_the_loss_still_fell_and_the_schedule_never_sees_it() -> None:
    held = Regression({**ALONE, "rate": "act"}).train(STEPS)
    plain = Regression(None).train(STEPS)
    assert not plain.end() < 2 * held.end(), "the rate spoils the plain run"
    assert held.warnings
    assert held.guard is not None
    assert not any(held.guard.totals.rollbacks.values())
    planned = 2e-3 * RISE**STEPS
    assert held.optimizer.param_groups[0]["lr"] == pytest.approx(planned)
    last = held.reports[-1]
    assert last.learning_rate == pytest.approx(last.rate_factor * planned / RISE)
    assert last.rate_factor < 0.5


def test_the_rate_is_let_go_once_the_schedule_is_below_it() -> None:
    run = Regression({**ALONE, "rate": "act"}).train(STEPS)
    assert run.reports[-1].rate_factor < 1.0
    for group in run.optimizer.param_groups:
        group["lr"] = 1e-3
    run.train(2)
    assert [report.rate_factor for report in run.reports[-2:]] == [1.0, 1.0]


def test_a_healthy_run_is_bit_identical_with_and_without_it() -> None:
    plain = plain_run(adamw).train_plain(120)
    assert not differences(plain.state(), guarded_run({"rate": "act"}, adamw).train(120).state())


def too_fast(rate: Literal["act", "off"]) -> tuple[float, list[str]]:
    """The final loss of a network with a warm-up to a rate that spoils it, and the reasons of warnings."""
    torch.manual_seed(1)
    sizes = [16, 32, 32, 32]
    layers = [part for pair in pairwise(sizes) for part in (nn.Linear(*pair), nn.ReLU())]
    teacher, model = mlp(16, 32, 1, activation=nn.Tanh), nn.Sequential(*layers, nn.Linear(32, 1))
    optimizer = torch.optim.Adam(model.parameters(), lr=0.2)
    warmup = torch.optim.lr_scheduler.LinearLR(optimizer, 0.01, total_iters=100)
    config = {**ALONE, "update_norm": 25, "rate": rate}
    guard, data = GradientGuard(model, optimizer, config, scheduler=warmup), torch.Generator().manual_seed(1)
    losses, reasons = [], []
    for _ in range(250):
        inputs = torch.randn(32, 16, generator=data)
        with torch.no_grad():
            targets = 3 * teacher(inputs) + 0.1 * torch.randn(32, 1, generator=data)
        optimizer.zero_grad()
        guard.backward((model(inputs) - targets).square().mean())
        report = guard.step()
        losses.append(report.loss)
        if report.verdict.kind == "warning" and report.incident:
            reasons.append(report.incident.reason)
    return sum(losses[-25:]) / 25, reasons


def test_a_constant_rate_whose_updates_are_long_is_lowered_and_the_run_is_not_spoiled() -> None:
    (spoiled, none), (saved, reasons) = too_fast("off"), too_fast("act")
    assert not none
    assert "while a step moves the weights by" in reasons[0]
    assert saved < spoiled / 3


def test_a_rate_that_was_held_is_whole_again_from_the_first_weights() -> None:
    climbing = Climbing(LAYERS)
    for at, loss in enumerate(noisy(map(valley, range(200)))):
        if climbing.observe(loss, rate := creeping(at)) is not None:
            climbing.hold = climbing.held(rate)
    assert climbing.hold < 1.0
    climbing.start_again()
    assert (climbing.hold, climbing.held(rate)) == (1.0, 1.0)
