"""A loss that climbs under too high a rate: announced before it is high, and eased where the guard may."""

from __future__ import annotations

import json
import math
import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from guard import GradientGuard, StepReport
from guard.decide.climbing import Climbing
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
    expected = [whole.observe(loss, creeping(at)) for at, loss in enumerate(losses)]
    found = [first.observe(loss, creeping(at)) for at, loss in enumerate(losses[:150])]
    second.load_state_dict(json.loads(json.dumps(first.state_dict())))
    found += [second.observe(loss, creeping(at)) for at, loss in enumerate(losses[150:], 150)]
    assert found == expected


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
