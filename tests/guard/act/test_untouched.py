"""A batch computed again beside the step leaves the run as it was, whatever its model remembers."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from guard import GradientGuard
from guard.act.untouched import untouched
from tests.guard.loops import Cursor, differences


class Recurrent(nn.Module):
    """Continues from the hidden state of the batch before, and counts in attributes that a forward makes."""

    def __init__(self) -> None:
        super().__init__()
        self.cell, self.head = nn.GRUCell(8, 16), nn.Linear(16, 4)
        self.hidden: Tensor | None = None

    def forward(self, inputs: Tensor) -> Tensor:
        self.calls = getattr(self, "calls", 0) + 1
        hidden = self.cell(inputs, self.hidden)
        self.hidden = hidden.detach()
        return self.head(hidden)


def trained(model: nn.Module, rate: str, *, region: bool = False) -> GradientGuard:
    """Twelve steps, of which three are measured; ``region``: each of them under autocast as a whole."""
    cursor = Cursor()
    guard = GradientGuard(model, torch.optim.Adam(model.parameters(), lr=3e-3), {"rate": rate})
    for _ in range(12):
        inputs, targets = next(cursor)

        def loss(inputs: Tensor = inputs, targets: Tensor = targets) -> Tensor:
            return F.mse_loss(model(inputs).float(), targets)

        model.zero_grad()
        with torch.autocast("cpu", torch.bfloat16, enabled=region):
            guard.backward(loss())
            guard.step(loss)
    return guard


def changes(guard: GradientGuard) -> list[Any]:
    """Of the loss by a step, and what its gradient predicts."""
    return list(guard._parts.decider.rate.start.overshoot.state_dict()["changes"])


def test_a_hidden_state_in_a_module_continues_as_if_nothing_had_been_measured() -> None:
    torch.manual_seed(0)
    measured = Recurrent()
    plain = copy.deepcopy(measured)
    guard, _ = trained(measured, "act"), trained(plain, "off")
    assert len(changes(guard)) == 3
    assert (measured.calls, plain.calls) == (12, 12)
    assert not differences(dict(measured.state_dict()), dict(plain.state_dict()))
    assert not differences(measured.hidden, plain.hidden)


def test_attributes_that_a_forward_makes_are_gone_afterwards() -> None:
    model = Recurrent()
    with untouched(model, list(model.parameters())):
        model(torch.zeros(2, 8))
        assert model.calls == 1
    assert model.hidden is None
    assert not hasattr(model, "calls")


@pytest.mark.parametrize("region", [False, True])
def test_a_step_under_autocast_is_measured_with_its_new_weights(region: bool) -> None:
    torch.manual_seed(0)
    guard = trained(nn.Linear(8, 4), "act", region=region)
    assert all(change < 0.0 for change, _ in changes(guard))
