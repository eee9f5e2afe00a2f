"""The loop as the README prints it, the report's fields, and errors that name what to write instead."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest
import torch
from prometheus_client import CollectorRegistry
from torch import nn
from torch.optim.lr_scheduler import ReduceLROnPlateau

from guard import (
    DetectConfig,
    GradientGuard,
    GuardConfig,
    GuardError,
    GuardMetrics,
    SpikeDetector,
    StepReport,
)
from tests.guard.loops import Cursor, guarded_run, network


def test_the_loop_works_as_printed() -> None:
    model = network()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    cursor = Cursor()
    loader = [next(cursor) for _ in range(60)]

    def loss_fn(model: nn.Module, batch: Any) -> torch.Tensor:
        inputs, targets = batch
        return nn.functional.mse_loss(model(inputs), targets)

    losses = []
    guard = GradientGuard(model, optimizer, GuardConfig())
    for batch in loader:
        optimizer.zero_grad()
        guard.backward(loss_fn(model, batch))
        report = guard.step()
        losses.append(report.loss)
    assert report.step == guard.steps == guard.attempts == 60
    assert sum(losses[-10:]) < 0.7 * sum(losses[:10])


def test_a_report_has_the_fields_of_the_contract() -> None:
    fields = {f.name for f in dataclasses.fields(StepReport)}
    promised = {
        "step", "action", "loss", "grad_norm", "clip_coef", "verdict", "rolled_back_to", "incident"
    }  # fmt: skip
    assert promised <= fields


def test_a_report_has_loss_norm_and_clipping_of_its_step() -> None:
    model = nn.Linear(1, 1, bias=False)
    nn.init.constant_(model.weight, 3.0)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.5)
    guard = GradientGuard(model, optimizer, GuardConfig.model_validate({"clip": {"max_norm": 2.0}}))
    guard.backward(model(torch.ones(1, 1)).square().mean())
    report = guard.step()
    assert (report.loss, report.grad_norm, report.clip_threshold) == (9.0, 6.0, 2.0)
    assert report.clip_coef == pytest.approx(1 / 3)
    assert (report.action, report.applied, report.learning_rate) == ("clipped", True, 0.5)
    assert model.weight.item() == pytest.approx(3.0 - 0.5 * 2.0)
    assert guard.layer_norms == {"weight": 6.0}


def test_the_loss_of_accumulated_micro_batches_is_their_mean() -> None:
    run = guarded_run()
    assert run.guard is not None
    for value in (1.0, 2.0, 6.0):
        run.guard.backward(run.loss() * 0 + value)
    assert run.guard.step().loss == 3.0


def test_a_registry_is_as_good_as_metrics() -> None:
    registry = CollectorRegistry()
    model = network()
    guard = GradientGuard(model, torch.optim.SGD(model.parameters(), lr=0.1), metrics=registry, job="mine")
    guard.backward(model(torch.ones(4, 8)).mean())
    guard.step()
    labels = {"job": "mine", "action": "applied"}
    assert isinstance(guard.metrics, GuardMetrics)
    assert registry.get_sample_value("gradguard_steps_total", labels) == 1.0


def test_a_detector_works_on_its_own() -> None:
    assert SpikeDetector(DetectConfig()).observe(float("nan")).kind == "nonfinite"


def test_a_stop_is_reported_in_the_next_step() -> None:
    run = guarded_run()
    assert run.guard is not None
    assert not run.attempt().stop
    run.guard.request_stop()
    assert run.attempt().stop


def guard_of(model: nn.Module, **options: Any) -> GradientGuard:
    parameters = [p for p in model.parameters() if p.requires_grad] or [nn.Parameter(torch.ones(1))]
    optimizer = torch.optim.SGD(parameters, lr=0.1)
    if options.pop("plateau", False):
        options["scheduler"] = ReduceLROnPlateau(optimizer)
    return GradientGuard(model, optimizer, **options)


@pytest.mark.parametrize(
    ("model", "options", "message"),
    [
        (nn.ReLU(), {}, "nothing to guard"),
        (nn.Linear(2, 2).requires_grad_(False), {}, "nothing to guard"),
        (nn.Linear(2, 2), {"state": {"sampler": [1, 2]}}, r"state\['sampler'\] is a list.*state_dict"),
        (nn.Linear(2, 2), {"data": [1, 2]}, "data is a list.*state_dict"),
        (nn.Linear(2, 2), {"ema": [1, 2]}, "ema is a list.*state_dict"),
        (nn.Linear(2, 2), {"state": {"data": nn.ReLU()}}, "state has the key 'data': write data=..."),
        (nn.Linear(2, 2), {"state": {"ema": nn.ReLU()}}, "state has the key 'ema': write ema=..."),
        (nn.Linear(2, 2), {"plateau": True}, "ReduceLROnPlateau needs a metric"),
    ],
)
def test_what_cannot_work_is_refused_with_what_to_do(
    model: nn.Module, options: dict[str, Any], message: str
) -> None:
    with pytest.raises(GuardError, match=message):
        guard_of(model, **options)


def test_a_step_without_backward_names_what_to_call() -> None:
    run = guarded_run()
    assert run.guard is not None
    run.loss().backward()
    with pytest.raises(GuardError, match=r"guard\.backward"):
        run.guard.step()


@pytest.mark.parametrize(
    "settings", [{"mode": "eager"}, {"clip": {"max": 1.0}}, {"local_norm": 0}, {"snapshot": {"keep": 1}}]
)
def test_a_setting_that_does_not_exist_is_refused(settings: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=next(iter(settings))):
        GuardConfig.model_validate(settings)
