"""Healthy runs, however noisy: no spike, few suspects."""

from __future__ import annotations

import math
import random
from collections.abc import Callable

import pytest

from tests.guard.synthetic_runs import Noise, Step, alarms, falling, gaussian, run, student, verdicts_of

ROWS = 3000
WARMUP = 30


def per_thousand(found: int, rows: int) -> float:
    return 1000 * found / rows


def mixup(jump: Callable[[int, random.Random], bool], seed: int, *, norm_jumps: bool = False) -> list[Step]:
    """A loss that jumps to 1.8 times its level again and again, as training with mixup does."""
    source = random.Random(seed)
    steps = []
    for i in range(ROWS):
        up = jump(i, source)
        loss = falling(i) * math.exp(source.gauss(0, 0.05)) * (1.8 if up else 1)
        norm = math.exp(source.gauss(0, 0.15)) * (1.5 if up and norm_jumps else 1)
        steps.append(Step(loss, norm))
    return steps


@pytest.mark.parametrize(
    ("rate", "norm_jumps"),
    [(rate, False) for rate in (0.02, 0.05, 0.1, 0.2, 0.35, 0.5, 0.7)]
    + [(rate, True) for rate in (0.1, 0.2, 0.35, 0.5, 0.7)],
)
def test_jumps_that_keep_coming_back_are_normal(rate: float, norm_jumps: bool) -> None:
    found = rows = 0
    for seed in range(3):
        steps = mixup(lambda _, source: source.random() < rate, seed, norm_jumps=norm_jumps)
        found += len(alarms(verdicts_of(steps), after=WARMUP))
        rows += ROWS - WARMUP
    assert per_thousand(found, rows) <= 0.2


@pytest.mark.parametrize("every", [2, 3, 5, 9])
def test_periodic_jumps_are_normal(every: int) -> None:
    verdicts = verdicts_of(mixup(lambda i, _: i % every == 0, seed=every))
    assert alarms(verdicts, after=WARMUP) == []


@pytest.mark.parametrize(
    "noise",
    [gaussian(0.005), gaussian(0.05), gaussian(0.2), student(0.01, 3), student(0.03, 4), student(0.1, 5)],
    ids=["quiet", "plain", "small batch", "heavy tails", "heavier noise", "wild"],
)
@pytest.mark.parametrize("seed", [0, 1, 2])
def test_noise_is_normal(noise: Noise, seed: int) -> None:
    verdicts = verdicts_of(run(ROWS, seed=seed, noise=noise, norm=lambda _: 0.5))
    assert alarms(verdicts) == []
    assert per_thousand(sum(v.kind == "suspect" for v in verdicts), ROWS) <= 4


def test_one_sided_tails_are_normal() -> None:
    """A loss taken from one micro-batch has hard batches, but no easy ones to match."""
    verdicts = verdicts_of(run(ROWS, noise=lambda source: 0.08 * source.expovariate(1)))
    assert alarms(verdicts) == []


def warmup(i: int) -> float:
    return 3 * min(1.0, (i + 1) / 200)


SCHEDULES: dict[str, tuple[Callable[[int], float], Callable[[int], float]]] = {
    "steep start": (lambda i: 1.5 + 9 / (1 + i / 20), lambda i: 0.3 + 15 / (1 + i / 10)),
    "warm-up of the learning rate": (lambda i: 0.5 + 2 * math.exp(-((i / 400) ** 2)), warmup),
    "step decay": (lambda i: (2.0, 1.1, 0.8, 0.7)[i // 800], lambda i: (1.0, 0.4, 0.2, 0.1)[i // 800]),
    "plateau, then a drop": (lambda i: 2.3 if i < 1500 else 0.2, lambda i: 0.1 if i < 1500 else 1.0 / 3),
    "growing norm": (lambda i: 3 - i / 4000, lambda i: 0.2 * math.exp(i / 1000)),
    "epochs": (lambda i: 1.0 + 0.1 * (i % 400 < 200) + 2 / (1 + i / 200), lambda _: 0.5),
    "interpolation": (lambda i: 2 * math.exp(-i / 300), lambda i: math.exp(-i / 300)),
}


@pytest.mark.parametrize("name", SCHEDULES)
@pytest.mark.parametrize("seed", [0, 1])
def test_schedules_are_normal(name: str, seed: int) -> None:
    loss, norm = SCHEDULES[name]
    verdicts = verdicts_of(run(ROWS, seed=seed, loss=loss, norm=norm, noise=gaussian(0.04)))
    alarmed = [(i, v.kind) for i, v in enumerate(verdicts) if v.kind not in ("ok", "suspect")]
    assert alarmed == []


@pytest.mark.parametrize("factor", [5, 10, 15])
def test_a_blip_of_the_norm_alone_is_suspect_at_most(factor: float) -> None:
    steps = run(ROWS, norm=lambda i: factor / 2 if i % 251 == 100 else 0.5)
    verdicts = verdicts_of(steps)
    assert alarms(verdicts) == []
    assert {v.signal for v in verdicts if v.kind == "suspect"} <= {"grad_norm"}


def test_loss_and_norm_that_rise_together_a_little_are_a_hard_batch() -> None:
    """Seen in real runs: 11 % more loss and twice the norm for one step, several times in 20,000."""
    steps = run(ROWS, noise=gaussian(0.013), norm=lambda _: 0.25)
    for i in range(500, ROWS, 700):
        steps[i] = Step(steps[i].loss * 1.12, 0.5)
    assert alarms(verdicts_of(steps)) == []


@pytest.mark.parametrize("offset", [-3.0, -6.0, -300.0])
def test_a_loss_that_crosses_zero_is_normal(offset: float) -> None:
    source = random.Random(5)
    steps = [Step(falling(i) * 2 + offset + source.gauss(0, 0.1), 1.0) for i in range(ROWS)]
    assert alarms(verdicts_of(steps)) == []


def test_a_loss_around_zero_is_normal() -> None:
    """Losses of reinforcement learning have any sign and no scale."""
    source = random.Random(6)
    verdicts = verdicts_of([Step(source.gauss(0, 0.01)) for _ in range(ROWS)])
    assert {v.kind for v in verdicts} == {"ok"}


def test_steps_without_a_measurement_are_ok() -> None:
    measured = run(1000)
    holes = [step for row in measured for step in (row, Step(None), Step(None, None))]  # type: ignore[arg-type]
    assert {v.kind for v in verdicts_of(holes)} == {"ok"}


def test_tasks_that_take_turns_are_normal() -> None:
    steps = [Step((0.5, 5.0)[i % 2], (1.0, 4.0)[i % 2]) for i in range(600)]
    assert alarms(verdicts_of(steps)) == []
