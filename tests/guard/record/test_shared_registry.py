"""Several guards of one process on one registry and one journal, each with a job of its own."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch
from prometheus_client import CollectorRegistry, generate_latest
from torch import nn

from guard import GradientGuard, GuardError
from jobs.run_dir.reader import RunReader


def pair(**options: object) -> dict[str, GradientGuard]:
    """A GAN's: the generator and the discriminator each have a guard."""
    guards = {}
    for job in ("generator", "discriminator"):
        model = nn.Linear(4, 1)
        optimizer = torch.optim.SGD(model.parameters(), lr=0.0)
        guards[job] = GradientGuard(model, optimizer, job=job, **options)  # type: ignore[arg-type]
    return guards


def step(guard: GradientGuard, loss: float) -> None:
    parameter = guard._parts.observer.parameters[0]
    guard.backward(parameter.sum() * 0 + loss)
    guard.step()


def test_guards_are_told_apart_by_their_job_on_one_registry() -> None:
    registry = CollectorRegistry()
    guards = pair(metrics=registry)
    step(guards["generator"], 1.0)
    step(guards["discriminator"], 2.0)
    text = generate_latest(registry).decode()
    assert 'gradguard_loss{job="generator"} 1.0' in text
    assert 'gradguard_loss{job="discriminator"} 2.0' in text
    assert text.count("# TYPE gradguard_loss ") == 1


def test_a_second_guard_of_the_same_job_is_refused_until_the_first_is_unregistered() -> None:
    registry, model = CollectorRegistry(), nn.Linear(4, 1)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    first = GradientGuard(model, optimizer, metrics=registry)
    with pytest.raises(GuardError, match="a job of its own"):
        GradientGuard(model, optimizer, metrics=registry)
    assert first.metrics is not None
    first.metrics.unregister(registry)
    GradientGuard(model, optimizer, metrics=registry)


def test_outcomes_in_one_journal_go_to_the_incident_of_their_job(tmp_path: Path) -> None:
    guards = pair(journal=tmp_path / "incidents.jsonl")
    for guard in guards.values():
        step(guard, math.nan)
    step(guards["generator"], 1.0)
    step(guards["generator"], 1.0)
    found = {i.job: i.outcome for i in RunReader(tmp_path / "incidents.jsonl").incidents()}
    assert found["discriminator"] is None
    assert found["generator"] is not None
    assert found["generator"].kind == "recovered"
