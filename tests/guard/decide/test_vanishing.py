"""A gradient that vanishes is named as clearly as one that explodes: before the run, and while it trains."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from guard import GradientGuard, GuardConfig, GuardMetrics
from guard.decide.vanishing import VanishingByDepth
from guard.preflight import run_preflight

INPUTS = torch.randn(32, 8, generator=torch.Generator().manual_seed(0))
LABELS = torch.arange(32) % 4


def deep(activation: type[nn.Module], layers: int = 12) -> nn.Sequential:
    torch.manual_seed(0)
    inner = [part for _ in range(layers) for part in (nn.Linear(16, 16), activation())]
    return nn.Sequential(nn.Linear(8, 16), *inner, nn.Linear(16, 4))


def loss_of(model: nn.Module) -> Tensor:
    return functional.cross_entropy(model(INPUTS), LABELS)


def watched(model: nn.Module, steps: int, folder: Path, **config: Any) -> tuple[list[Any], GuardMetrics]:
    metrics = GuardMetrics()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    settings = GuardConfig(dead_steps=30, **config)
    guard = GradientGuard(model, optimizer, settings, metrics=metrics, journal=folder / "incidents.jsonl")
    reports = []
    for _ in range(steps):
        optimizer.zero_grad()
        guard.backward(loss_of(model))
        reports.append(guard.step())
    return reports, metrics


def test_it_is_named_before_the_run_and_in_it_with_the_first_layer(tmp_path: Path) -> None:
    model = deep(nn.Sigmoid)
    flight = run_preflight(model, loss_of)
    assert flight.verdict == "vanishing"
    assert flight.layer is not None
    assert flight.layer in flight.line()
    assert "model.init" in flight.suggestion

    reports, metrics = watched(model, 100, tmp_path)
    reported = [report for report in reports if report.verdict.kind != "ok"]
    assert [report.verdict.kind for report in reported] == ["vanishing"], "once"
    assert reported[0].action in ("applied", "clipped")
    assert reported[0].step == 30
    incident = reported[0].incident
    assert incident is not None
    first = incident.layers[0]["name"]
    assert f"from {first} on" in incident.reason
    assert abs(int(first.split(".")[0]) - int(flight.layer)) <= 6, "where the pre-flight saw it, or nearly so"
    assert incident.score > 5
    (row,) = map(json.loads, (tmp_path / "incidents.jsonl").read_text().splitlines())
    assert (row["verdict"], row["layers"][0]["name"]) == ("vanishing", first)
    assert metrics.snapshot()["totals"]["anomalies"]["grad_norm"]["vanishing"] == 1


@pytest.mark.parametrize("mode", ["exact", "shadow"])
@pytest.mark.parametrize("activation", [nn.ReLU, nn.GELU, nn.Tanh])
def test_a_network_as_deep_that_trains_raises_no_alarm(
    activation: type[nn.Module], mode: str, tmp_path: Path
) -> None:
    model = deep(activation, layers=4)
    assert run_preflight(model, loss_of).fine
    reports, _ = watched(model, 100, tmp_path, mode=mode)
    assert {report.verdict.kind for report in reports} == {"ok"}


def fading(model: nn.Module, steps: int) -> list[Any]:
    """The whole gradient shrinks, and that of the third layer most."""
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-4)
    guard = GradientGuard(model, optimizer, GuardConfig(dead_steps=1000))
    reports = []
    for step in range(steps):
        optimizer.zero_grad()
        guard.backward(loss_of(model))
        factor = 10 ** -(max(0, step - 100) / 40)
        for number, parameter in enumerate(model.parameters()):
            assert parameter.grad is not None
            parameter.grad.mul_(factor ** (2 if number == 2 else 1))
        reports.append(guard.step())
    return reports


def test_where_the_whole_gradient_fades_the_layer_that_lost_most_is_named() -> None:
    model = nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 16), nn.ReLU(), nn.Linear(16, 4))
    (reported, *_) = [report for report in fading(model, 400) if report.verdict.kind == "vanishing"]
    assert reported.incident.layers[0]["name"] == "2.weight"
    assert reported.incident.reason == "the gradient has all but vanished, most of all in 2.weight"
    assert reported.incident.baseline > 50 * reported.grad_norm


def matrices(count: int) -> list[Tensor]:
    return [torch.zeros(4, 4) for _ in range(count)]


def first_told(depth: VanishingByDepth, norms: list[float], attempts: int = 40) -> tuple[int, int] | None:
    for attempt in range(1, attempts + 1):
        if (found := depth.observe(attempt, np.array(norms))) is not None:
            return attempt, found[0]
    return None


def test_it_must_last_and_is_reported_again_only_after_it_was_over() -> None:
    depth = VanishingByDepth(matrices(6), lasting_steps=30)
    norms = [1e-9, 1e-8, 1e-3, 1.0, 1.0, 1.0]
    assert first_told(depth, norms) == (30, 1)
    assert first_told(depth, norms) is None
    assert first_told(depth, [1.0] * 6) is None
    assert first_told(depth, norms) == (30, 1)


@pytest.mark.parametrize(
    "norms",
    [
        [0.0, 0.0, 1.0, 1.0, 1.0, 1.0],
        [1e-9, 1e-2, 1.0, 1.0, 1.0, 1.0],
        [np.nan, 1e-9, 1.0, 1.0, 1.0, 1.0],
        [1e-9, 1e-9, 1.0, 1.0, 1.0, np.inf],
        [0.0] * 6,
    ],
    ids=["frozen", "only the first", "nan", "inf", "none"],
)
def test_what_is_no_vanishing_gradient(norms: list[float]) -> None:
    assert first_told(VanishingByDepth(matrices(6), lasting_steps=10), norms) is None


def test_a_shallow_network_and_one_of_vectors_have_no_depth() -> None:
    assert first_told(VanishingByDepth(matrices(5), lasting_steps=10), [1e-9, 1.0, 1.0, 1.0, 1.0]) is None
    vectors = [torch.zeros(4) for _ in range(9)]
    assert first_told(VanishingByDepth(vectors, lasting_steps=10), [1e-9] * 4 + [1.0] * 5) is None


def test_the_count_of_a_run_continues_after_a_resume() -> None:
    def begin() -> tuple[nn.Module, torch.optim.Optimizer, GradientGuard]:
        model = deep(nn.Sigmoid)
        optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
        return model, optimizer, GradientGuard(model, optimizer, GuardConfig(dead_steps=30))

    model, optimizer, guard = begin()
    kinds = []
    for attempt in range(40):
        if attempt == 25:
            state = guard.state_dict()
            weights = model.state_dict()
            model, optimizer, guard = begin()
            model.load_state_dict(weights)
            guard.load_state_dict(state)
        optimizer.zero_grad()
        guard.backward(loss_of(model))
        kinds.append(guard.step().verdict.kind)
    assert kinds.index("vanishing") == 29
