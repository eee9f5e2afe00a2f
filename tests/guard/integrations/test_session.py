"""A framework owns the loader: nothing that the guard does moves its cursor."""

from __future__ import annotations

from typing import Any

import torch
from torch.nn import functional as F

from guard import GuardConfig, StepReport
from guard.integrations.session import GuardSession
from tests.guard.loops import Cursor, network


class Watched(Cursor):
    """Counts how often its position is set."""

    loads = 0

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.loads += 1
        super().load_state_dict(state)


def trained(cursor: Watched, attempts: int, rate: float) -> list[StepReport]:
    """A training whose rate the guard may change, in a framework's loop."""
    session = GuardSession(GuardConfig(rate="act"), data=cursor)
    model = network()
    optimizer = torch.optim.SGD(model.parameters(), lr=rate, momentum=0.9)
    session.begin(model, optimizer, schedules=[], scaler=None)
    reports = []
    for _ in range(attempts):
        inputs, targets = next(cursor)
        optimizer.zero_grad()
        loss = F.mse_loss(model(inputs), targets)
        session.observe(loss)
        loss.backward()
        session.step()
        session.settle()
        assert session.report is not None
        reports.append(session.report)
    return reports


def test_a_return_for_a_lower_rate_goes_on_with_the_loaders_next_batch() -> None:
    cursor = Watched()
    reports = trained(cursor, 60, rate=30.0)
    returned = [report.incident for report in reports if report.action == "rolled_back"]
    assert any(incident is not None and "first steps" in incident.reason for incident in returned)
    assert (cursor.position, cursor.loads) == (60, 0)
    assert reports[-1].rate_factor < 0.1


def test_its_samples_are_named() -> None:
    cursor = Watched()
    incidents = [report.incident for report in trained(cursor, 60, rate=30.0) if report.incident is not None]
    assert all(len(incident.samples) > 0 for incident in incidents)
