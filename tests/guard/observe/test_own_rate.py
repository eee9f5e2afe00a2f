"""Optimizers that find their own rate: their updates grow by design."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from sklearn.datasets import load_digits
from torch import Tensor, nn

from guard import GradientGuard, GuardConfig, StepReport
from guard.observe.own_rate import OwnRate, declared_rate, step_size

DIGITS = tuple(torch.tensor(part) for part in load_digits(return_X_y=True))


class Growing(torch.optim.SGD):
    """Its step size grows from 1e-6, as that of Prodigy (arXiv 2306.06101) and DoG (2302.12022) does.

    Args:
        key: under which it keeps it.
        as_list: whether it keeps it as DoG does, in a list of tensors.
    """

    def __init__(self, parameters: Any, key: str, *, as_list: bool = False) -> None:
        super().__init__(parameters, lr=1.0)
        self._key, self._as_list, self._size = key, as_list, 1e-6
        self._write()

    def _write(self) -> None:
        size: Any = [torch.tensor(self._size)] if self._as_list else self._size
        self.param_groups[0][self._key] = size

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:
        assert closure is None
        self._size = min(0.3, self._size * 1.1)
        self._write()
        for parameter in self.param_groups[0]["params"]:
            parameter.sub_(parameter.grad, alpha=self._size * self.param_groups[0]["lr"])


class Counting(torch.optim.SGD):
    """Keeps a count in its group, as many do: no rate of its own."""

    def step(self, closure: Any = None) -> Any:
        self.param_groups[0]["k"] = self.param_groups[0].get("k", 0) + 1
        return super().step(closure)


MAKERS: dict[str, Callable[[list[Tensor]], torch.optim.Optimizer]] = {
    "prodigy": lambda p: Growing(p, "d"),
    "dog": lambda p: Growing(p, "rbar", as_list=True),
    "scheduled": lambda p: Growing(p, "scheduled_lr"),
    "counting": lambda p: Counting(p, lr=0.1),
    "adamw": lambda p: torch.optim.AdamW(p, lr=1e-3),
}


def model() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(64, 32), nn.ReLU(), nn.Linear(32, 10))


def train(network: nn.Module, optimizer: torch.optim.Optimizer, attempts: int) -> list[StepReport]:
    guard, reports = GradientGuard(network, optimizer, GuardConfig()), []
    for _ in range(attempts):
        rows = torch.randint(len(DIGITS[1]), (64,))
        optimizer.zero_grad()
        guard.backward(nn.functional.cross_entropy(network(DIGITS[0][rows].float() / 16), DIGITS[1][rows]))
        reports.append(guard.step())
    return reports


@pytest.mark.parametrize("name", MAKERS)
def test_a_rate_that_grows_by_design_is_no_runaway(name: str) -> None:
    network = model()
    optimizer = MAKERS[name](list(network.parameters()))
    assert all(report.applied for report in train(network, optimizer, 260))


@pytest.mark.skipif(not hasattr(torch.optim, "Muon"), reason="this torch has no Muon")
def test_muon_is_no_runaway() -> None:
    network = model()
    for parameter in network.parameters():
        parameter.requires_grad_(parameter.ndim == 2)
    optimizer = torch.optim.Muon([p for p in network.parameters() if p.requires_grad], lr=0.02)
    assert all(report.applied for report in train(network, optimizer, 260))


@pytest.mark.parametrize(
    ("name", "found", "hidden"),
    [("prodigy", True, False), ("dog", True, True), ("counting", False, False), ("adamw", False, False)],
)
def test_what_an_optimizer_writes_into_its_group_shows_its_own_rate(
    name: str, found: bool, hidden: bool
) -> None:
    network = model()
    optimizer = MAKERS[name](list(network.parameters()))
    own = OwnRate(optimizer)
    own.start()
    optimizer.param_groups[0]["lr"] = 0.01  # by a schedule
    network(torch.ones(2, 64)).sum().backward()
    optimizer.step()
    own.check()
    assert (own.found, own.hidden) == (found, hidden)


def test_the_step_sizes_of_rprop_are_its_own() -> None:
    assert OwnRate(torch.optim.Rprop(model().parameters(), lr=1e-3)).hidden


def test_the_step_size_of_prodigy_is_part_of_its_rate() -> None:
    optimizer = Growing(list(model().parameters()), "d")
    assert declared_rate(optimizer) * step_size(optimizer) == pytest.approx(1e-6)
    optimizer.param_groups[0]["lr"] = None  # Adafactor with a relative step
    assert declared_rate(optimizer) != declared_rate(optimizer)
