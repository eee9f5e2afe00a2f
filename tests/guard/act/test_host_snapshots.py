"""Snapshots of a model on a GPU that are kept on the host: on a simulated one whose side stream is late."""

from __future__ import annotations

import copy
import math
from typing import Any

import pytest
import torch
from torch import Tensor

from guard import GuardError
from guard.act.stores import StateStore
from tests.guard.simulated_cuda import Loop, OnDevice, SimulatedCuda

CONFIG: dict[str, Any] = {"snapshot": {"every_steps": 10, "place": "host"}, "recovery": {"cooldown_steps": 0}}


def held(loop: Loop) -> list[Tensor]:
    """Weights, moments and averaged weights."""
    moments = [value for state in loop.optimizer.state.values() for value in state.values()]
    averaged = loop.average.weights if loop.average is not None else []
    return [getattr(t, "held", t).detach().clone() for t in (*loop.model.parameters(), *moments, *averaged)]


def trained(mode: str, place: str, *, averaged: bool) -> tuple[list[Tensor], set[int]]:
    """What a run with a rollback ends with, and the waits of its steps before that."""
    config = {"mode": mode, **CONFIG, "snapshot": {"every_steps": 10, "place": place}}
    waits, rolled_back = set(), False
    with SimulatedCuda() as device:
        loop = Loop(device, config, averaged=averaged)
        good = loop.gradients[0]
        for step in range(38):
            loop.gradients[0] = good * torch.nan if step in (33, 34, 35) else good
            report = loop.step()
            rolled_back |= report.rolled_back_to == 30
            if loop.average is not None and report.applied:
                loop.average.update(loop.model)
            if 30 <= step < 33:
                waits.add(len(device.waits))
        assert rolled_back
        return held(loop), waits


@pytest.mark.parametrize(("mode", "averaged"), [("exact", True), ("deferred", False)])
def test_a_copy_that_is_late_is_of_its_step_and_the_host_waits_no_more_for_it(
    mode: str, averaged: bool
) -> None:
    ends, waits = trained(mode, "host", averaged=averaged)
    on_device, the_same = trained(mode, "device", averaged=averaged)
    assert all(torch.equal(a, b) for a, b in zip(ends, on_device, strict=True))
    assert waits == the_same == {1 if mode == "exact" else 0}


def test_all_memory_is_allocated_by_the_end_of_the_first_step() -> None:
    with SimulatedCuda() as device:
        loop, sizes = Loop(device, {"mode": "exact", **CONFIG}, averaged=True), []
        for _ in range(25):
            loop.step()
            assert loop.average is not None
            loop.average.update(loop.model)
            sizes.append(device.snapshot_bytes)
        weights = sum(p.nbytes for p in loop.model.parameters())
        moments = sum(getattr(t, "nbytes", 0) for s in loop.optimizer.state.values() for t in s.values())
    assert set(sizes) == {2 * (2 * weights + moments)}


def pinned(steps: int, limit: float = math.inf) -> int:
    """By three snapshots within the first steps."""
    config = {"mode": "exact", "snapshot": {"place": "host", "keep": 3}}
    with SimulatedCuda(pinned_bytes=limit) as device:
        loop = Loop(device, config)
        for _ in range(steps):
            loop.step()
        return device.snapshot_bytes


@pytest.mark.parametrize("steps", [0, 1])
def test_too_little_memory_is_reported_at_the_start_with_what_to_lower(steps: int) -> None:
    with pytest.raises(GuardError, match=r"pinned memory of the host for 3 snapshots.*keep to 2"):
        pinned(steps, limit=pinned(steps) - 1)


def test_a_state_is_copied_to_reused_memory_and_comes_back_as_deepcopy_has_it() -> None:
    shared = torch.ones(2)
    state = {"a": shared, "nested": [{"b": (torch.zeros(3), 1)}, shared], "own": object, "none": None}
    store = StateStore()
    store.save(state)
    expected, places = copy.deepcopy(state), [t.data_ptr() for t in store._tensors._copies]
    shared.fill_(7)
    found, other = store.load(), store.load()
    assert torch.equal(found["a"], expected["a"])
    assert found["nested"][1] is found["a"]
    assert found["a"] is not other["a"]
    assert torch.equal(found["nested"][0]["b"][0], torch.zeros(3))
    assert (found["nested"][0]["b"][1], found["own"], found["none"]) == (1, object, None)
    store.save(state)
    assert [t.data_ptr() for t in store._tensors._copies] == places
    assert torch.equal(store.load()["a"], torch.full((2,), 7.0))


def test_the_simulated_side_stream_shows_a_copy_that_nobody_waited_for() -> None:
    with SimulatedCuda() as device:
        tensor, stream = OnDevice(torch.ones(2)), torch.cuda.Stream()
        into = torch.empty(2, pin_memory=True)
        with torch.cuda.stream(stream):
            into.copy_(tensor, non_blocking=True)
        tensor.fill_(5.0)
        tensor.record_stream(stream)
        torch.cuda.current_stream(None).wait_event(stream.record_event())
    assert into.tolist() == [5.0, 5.0]
    assert not device.waits
