"""How often a step makes the host wait for a CUDA device: counted on a simulated one."""

from __future__ import annotations

from collections import Counter
from typing import Any

import pytest
import torch

from guard.observe.norms import to_host
from tests.guard.simulated_cuda import CUDA, Loop, OnDevice, SimulatedCuda

FIRST = 30
"""Until then the rate at the start is judged, for which the weights are measured."""
STEPS = 80
NEVER, ALWAYS = 1e9, 1e-6


def waits(config: dict[str, Any], *, tensor_rate: bool = False) -> tuple[set[int], set[str]]:
    """The numbers of waits that steps have, and the actions of these steps."""
    with SimulatedCuda() as device:
        loop, found, actions = Loop(device, config, tensor_rate=tensor_rate), set(), set()
        for step in range(STEPS):
            action = loop.step().action
            if step >= FIRST:
                found.add(len(device.waits))
                actions.add(action)
    return found, actions


@pytest.mark.parametrize("tensor_rate", [False, True], ids=["a rate", "a rate on the device"])
@pytest.mark.parametrize(("limit", "action"), [(NEVER, "applied"), (ALWAYS, "clipped")])
def test_an_exact_step_waits_once_clipped_or_not(limit: float, action: str, tensor_rate: bool) -> None:
    config = {"mode": "exact", "clip": {"max_norm": limit}}
    assert waits(config, tensor_rate=tensor_rate) == ({1}, {action})


def test_a_shadow_waits_once_for_what_it_reports() -> None:
    assert waits({"mode": "shadow"}, tensor_rate=True) == ({1}, {"applied"})


@pytest.mark.parametrize("tensor_rate", [False, True], ids=["a rate", "a rate on the device"])
def test_a_guard_that_is_off_waits_for_nothing(tensor_rate: bool) -> None:
    assert waits({"mode": "off"}, tensor_rate=tensor_rate) == ({0}, {"applied"})


@pytest.mark.parametrize("tensor_rate", [False, True], ids=["a rate", "a rate on the device"])
@pytest.mark.parametrize(("limit", "action"), [(NEVER, "applied"), (ALWAYS, "clipped")])
def test_a_deferred_step_waits_for_nothing_though_the_movement_is_measured(
    limit: float, action: str, tensor_rate: bool
) -> None:
    config = {"mode": "deferred", "update_norm": 10, "clip": {"max_norm": limit}}
    assert waits(config, tensor_rate=tensor_rate) == ({0}, {action})


def test_a_deferred_step_reports_the_rate_on_the_device_that_it_used() -> None:
    with SimulatedCuda() as device:
        loop = Loop(device, {"mode": "deferred"}, tensor_rate=True)
        used, seen = [], []
        for step in range(40):
            assert isinstance(loop.rate, OnDevice)
            loop.rate.fill_(1e-3 / (1 + step))  # as a schedule that the loop steps itself
            used.append(1e-3 / (1 + step))
            seen.append(loop.step().learning_rate)
        assert not device.waits
    assert seen[20:] == pytest.approx(used[19:-1])


def test_a_guard_that_is_off_reports_the_step_before() -> None:
    with SimulatedCuda() as device:
        loop = Loop(device, {"mode": "off"})
        norms = []
        for step in range(4):
            loop.gradients = [OnDevice((1.0 + step) * torch.ones(p.shape)) for p in loop.model.parameters()]
            norms.append(loop.step().grad_norm)
    assert norms[1:] == pytest.approx([norms[0], 2 * norms[0], 3 * norms[0]])


@pytest.mark.parametrize("mode", ["exact", "deferred", "off"])
def test_parameters_of_half_precision_need_no_more_launches(mode: str) -> None:
    launches = []
    for dtype in (torch.float32, torch.bfloat16):
        with SimulatedCuda() as device:
            loop = Loop(device, {"mode": mode, "update_norm": 25}, dtype=dtype)
            for _ in range(STEPS):
                device.ops.clear()
                loop.step()
                last = len(device.ops)
            launches.append(last)
    assert launches[1] <= launches[0] + 2


def test_a_rate_on_the_device_is_reported_as_the_schedule_writes_it() -> None:
    with SimulatedCuda() as device:
        loop = Loop(device, {"mode": "exact"}, tensor_rate=True)
        for step in range(1, 6):
            assert isinstance(loop.rate, OnDevice)
            loop.rate.fill_(1e-3 / step)
            report = loop.step()
            assert report.learning_rate == pytest.approx(1e-3 / step)
            assert len(device.waits) == 1
        loop.rate.held.fill_(0.5)  # unseen by torch's version counter, as in a replayed graph
        assert loop.step().learning_rate == 0.5


def test_a_skip_on_the_device_leaves_the_weights_to_the_bit() -> None:
    with SimulatedCuda() as device:
        loop = Loop(device, {"mode": "exact"})
        for _ in range(3):
            loop.step()
        before = [p.held.clone() for p in loop.model.parameters()]  # type: ignore[attr-defined]
        loop.gradients[0] = loop.gradients[0] * torch.nan
        assert loop.step().action == "skipped"
        after = [p.held for p in loop.model.parameters()]  # type: ignore[attr-defined]
    assert all(torch.equal(a, b) for a, b in zip(before, after, strict=True))


@pytest.mark.parametrize(
    ("read", "waited"),
    [
        (lambda t: t.item(), 1),
        (lambda t: float(t), 1),
        (lambda t: bool(t > 0), 1),
        (lambda t: t.cpu(), 1),
        (lambda t: torch.zeros(()).copy_(t), 1),
        (lambda t: t.copy_(torch.zeros(())), 1),
        (lambda t: t.copy_(torch.zeros(()), non_blocking=True), 0),
        (lambda _: torch.tensor(1.0, device=CUDA), 1),
        (lambda _: torch.full((), 1.0, device=CUDA), 0),
        (lambda t: (t * 2).sqrt().add_(1), 0),
        (lambda t: to_host(t, t), 1),
    ],
)
def test_the_simulated_device_sees_what_makes_a_host_wait(read: Any, waited: int) -> None:
    with SimulatedCuda() as device:
        read(OnDevice(torch.ones(())))
    assert Counter(device.waits).total() == waited
