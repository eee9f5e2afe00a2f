"""Made-up training runs: losses and gradient norms that are healthy, with known noise, seed by seed."""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Iterable, Sequence
from typing import NamedTuple

from guard.config import DetectConfig
from guard.decide.detector import SpikeDetector
from guard.records import Verdict


class Step(NamedTuple):
    """One observed step."""

    loss: float
    grad_norm: float | None = None
    update_norm: float | None = None


Noise = Callable[[random.Random], float]


def gaussian(sigma: float) -> Noise:
    return lambda source: source.gauss(0, sigma)


def student(sigma: float, freedom: int) -> Noise:
    """Heavy tails: outliers of tens of sigmas occur."""

    def draw(source: random.Random) -> float:
        spread = math.sqrt(sum(source.gauss(0, 1) ** 2 for _ in range(freedom)) / freedom)
        return sigma * source.gauss(0, 1) / spread

    return draw


def falling(step: int) -> float:
    """A loss that falls like 1/t from 8 to 2."""
    return 2 + 6 / (1 + step / 300)


def run(
    rows: int,
    *,
    seed: int = 0,
    loss: Callable[[int], float] = falling,
    noise: Noise | None = None,
    norm: Callable[[int], float] | None = None,
) -> list[Step]:
    """Losses with multiplicative noise; the norm, if any, has 15 % of its own."""
    source = random.Random(seed)
    noise = noise or gaussian(0.03)
    return [
        Step(
            loss(i) * math.exp(noise(source)),
            None if norm is None else norm(i) * math.exp(source.gauss(0, 0.15)),
        )
        for i in range(rows)
    ]


def verdicts_of(steps: Iterable[Step], config: DetectConfig | None = None) -> list[Verdict]:
    """The verdicts of a fresh detector."""
    detector = SpikeDetector(config)
    return [detector.observe(*step) for step in steps]


def kinds(steps: Iterable[Step]) -> list[str]:
    return [verdict.kind for verdict in verdicts_of(steps)]


def alarms(verdicts: Sequence[Verdict], *, after: int = 0) -> list[int]:
    """Rows with a verdict that costs a rollback, or a skip in any case."""
    return [i for i, v in enumerate(verdicts) if i >= after and v.kind in ("spike", "nonfinite")]
