"""Weights that move ever farther and get nowhere are rolled back, though neither loss nor gradient jumps."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import CosineAnnealingWarmRestarts, ExponentialLR, LinearLR, StepLR

from guard.decide.detector import SpikeDetector
from tests.guard.loops import adamw, guarded_run, sgd
from tests.guard.synthetic_runs import Step, alarms, run, verdicts_of

EVERY = 20
FROM = 160
"""Too early for a threshold of the movement itself, with which ten times its level is anomalous at once."""
Course = Callable[[int], float]


def measured(
    update: Course, *, loss: Course = lambda _: 2.0, norm: Course = lambda _: 1.0, every: int = EVERY
) -> list[Step]:
    """300 noisy rows; the movement is measured once in N of them."""
    rows = run(300, loss=loss, norm=norm)
    return [row._replace(update_norm=update(i) if i % every == 0 else None) for i, row in enumerate(rows)]


def faster(row: int) -> float:
    """By 8 % a step, from some step on."""
    return 30 * 1.08 ** max(0, min(row - FROM, 60))


def slightly_worse(row: int) -> float:
    return 2.0 if row < FROM else 2.1


def test_ever_longer_steps_are_a_spike_of_the_update() -> None:
    verdicts = verdicts_of(measured(faster, loss=slightly_worse))
    assert alarms(verdicts)[0] in (FROM + 40, FROM + 60)
    first = verdicts[alarms(verdicts)[0]]
    assert (first.kind, first.signal) == ("spike", "update_norm")
    assert first.baseline is not None
    assert first.baseline < 200


@pytest.mark.parametrize(
    "steps",
    [
        pytest.param(measured(faster, loss=lambda i: 2.0 - i / 200), id="the loss falls"),
        pytest.param(
            measured(faster, loss=slightly_worse, norm=lambda i: faster(i) / 30), id="the gradient grows"
        ),
        pytest.param(measured(lambda i: 300 if i == FROM else 30, loss=slightly_worse), id="one stretch"),
        pytest.param(measured(lambda i: 30 * 1.01 ** (i % 100), loss=slightly_worse), id="ordinary growth"),
        pytest.param(measured(lambda _: 0.0), id="nothing moves"),
    ],
)
def test_what_has_another_reason_is_not(steps: list[Step]) -> None:
    assert not [v for v in verdicts_of(steps) if v.kind == "spike" and v.signal == "update_norm"]


def test_longer_steps_that_pay_become_ordinary() -> None:
    """Once they are, a loss that rises for another reason does not make them strange again."""
    longer = measured(lambda i: 30 if i < FROM else 150, loss=lambda i: 2.0 - i / 300 if i < 260 else 1.2)
    assert not [v for v in verdicts_of(longer) if v.kind == "spike" and v.signal == "update_norm"]


def test_what_is_foreseen_is_what_is_observed() -> None:
    detector = SpikeDetector()
    spikes = 0
    for loss, norm, update in measured(faster, loss=slightly_worse):
        assert norm is not None
        expected = detector.foresee(loss, norm, update)
        verdict = detector.observe(loss, norm, update)
        spikes += verdict.kind == "spike"
        if verdict.kind in ("ok", "suspect", "spike"):
            assert expected == verdict
    assert spikes


@pytest.mark.parametrize("cut", [FROM + 10, FROM + 30, FROM + 50])
def test_its_memory_survives_a_restart(cut: int) -> None:
    steps = measured(faster, loss=slightly_worse)
    detector, restored = SpikeDetector(), SpikeDetector()
    for step in steps[:cut]:
        detector.observe(*step)
    restored.load_state_dict(json.loads(json.dumps(detector.state_dict(), allow_nan=False)))
    for step in steps[cut:]:
        assert restored.observe(*step) == detector.observe(*step)


def test_a_state_from_before_it_existed_is_taken() -> None:
    detector = SpikeDetector()
    old = detector.state_dict()
    del old["runaway_updates"]
    detector.load_state_dict(old)
    assert detector.observe(1.0).kind == "ok"


def quick(parameters: list[nn.Parameter]) -> Optimizer:
    return torch.optim.AdamW(parameters, lr=0.03)


DRIFT = {"kind": "lr_drift", "step": 100, "times": 60, "factor": 1.08}


def test_a_rate_that_creeps_up_inside_the_optimizer_is_rolled_back() -> None:
    """The rate that the optimizer shows never changes, and no signal jumps."""
    settings: dict[str, Any] = {"snapshot": {"every_steps": 20}, "update_norm": 20}
    clean = guarded_run(settings, quick).train(300)
    hurt = guarded_run(settings, quick, faults=[DRIFT]).train(300)
    back = [r for r in hurt.reports if r.action == "rolled_back"]
    assert back, "the drift was not noticed"
    assert back[0].verdict.signal in ("update_norm", "loss")
    assert final_loss(hurt) < 1.1 * final_loss(clean)


def final_loss(run: Any) -> float:
    losses = [r.loss for r in run.reports[-40:]]
    return math.fsum(losses) / len(losses)


SCHEDULES: dict[str, Callable[[Any], Any]] = {
    "warm restarts": lambda o: CosineAnnealingWarmRestarts(o, 60),
    "a tenth at once": lambda o: StepLR(o, 101),
    "a hundredth at once": lambda o: StepLR(o, 300, 0.01),
    "decay": lambda o: ExponentialLR(o, 0.98),
    "to zero": lambda o: LinearLR(o, 1.0, 0.0, 400),
    "long warm-up": lambda o: LinearLR(o, 1e-3, 1.0, 300),
}


@pytest.mark.parametrize("name", SCHEDULES)
@pytest.mark.parametrize("optimizer", [adamw, sgd])
@pytest.mark.parametrize("every", [1, 5, 25])
def test_no_schedule_is_taken_for_it(name: str, optimizer: Any, every: int) -> None:
    trained = guarded_run({"update_norm": every}, optimizer)
    torch.manual_seed(0)
    trained.scheduler = SCHEDULES[name](trained.optimizer)
    for _ in range(400):
        assert trained.attempt().verdict.kind != "spike"
        trained.scheduler.step()
