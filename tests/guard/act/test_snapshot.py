"""The ring of snapshots: which are healthy, which is returned to, and what memory they use."""

from __future__ import annotations

import copy
import random
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from guard.act.buffers import Buffers
from guard.act.snapshot import SnapshotRing, Subject
from guard.act.stores import OptimizerStore, Place, TensorStore
from guard.config import SnapshotConfig
from tests.guard.loops import differences, network


class Bench:
    """A one-parameter model whose weight is the step it was set at."""

    def __init__(self, **config: Any) -> None:
        self.model = nn.Linear(1, 1, bias=False)
        self.optimizer = torch.optim.SGD(self.model.parameters(), lr=0.1)
        settings = {"every_steps": 10, "clean_steps": 2, **config}
        self.ring = SnapshotRing(
            SnapshotConfig.model_validate(settings), Subject(self.model, self.optimizer, {})
        )
        self.now = 0
        self.at(0)
        self.ring.take(0, healthy=True)

    def at(self, step: int) -> None:
        self.now = step
        with torch.no_grad():
            self.model.weight.fill_(float(step))

    def clean(self, steps: int = 1) -> Bench:
        for _ in range(steps):
            self.at(self.now + 1)
            self.ring.clean_step()
            if self.ring.due(self.now):
                self.ring.take(self.now)
        return self

    def back(self) -> int:
        target = self.ring.target()
        assert target is not None
        self.ring.restore(target, keep=frozenset())
        assert self.model.weight.item() == target.step
        self.now = target.step
        return target.step


@pytest.mark.parametrize(
    ("steps", "target"), [(9, 0), (10, 0), (11, 0), (12, 10), (21, 10), (22, 20), (55, 50)]
)
def test_a_snapshot_is_returned_to_only_after_clean_steps(steps: int, target: int) -> None:
    assert Bench().clean(steps).back() == target


def test_an_anomaly_drops_the_candidates() -> None:
    bench = Bench().clean(11)
    bench.ring.drop_candidates()
    assert bench.clean(5).back() == 0
    assert Bench().clean(12).back() == 10


def test_after_an_anomaly_the_next_snapshot_counts_from_zero() -> None:
    bench = Bench().clean(11)
    bench.ring.drop_candidates()
    assert bench.clean(11).back() == 20


def test_going_back_drops_what_came_after() -> None:
    bench = Bench(keep=4).clean(11)
    assert bench.back() == 0
    assert bench.clean(15).back() == 10


def test_a_snapshot_that_failed_twice_is_replaced_by_an_older_one() -> None:
    bench = Bench(keep=3).clean(25)
    assert [bench.back(), bench.clean().back(), bench.clean().back()] == [20, 20, 10]


def test_the_last_healthy_snapshot_is_kept_however_often_it_fails() -> None:
    bench = Bench()
    assert [bench.back() for _ in range(5)] == [0] * 5


@pytest.mark.parametrize("seed", range(10))
def test_the_last_healthy_snapshot_is_never_lost(seed: int) -> None:
    pick = random.Random(seed)
    bench = Bench(every_steps=pick.randint(1, 4), keep=pick.randint(2, 4), clean_steps=pick.randint(1, 6))
    for _ in range(300):
        event = pick.random()
        if event < 0.85:
            bench.clean()
        elif event < 0.95:
            bench.ring.drop_candidates()
        else:
            bench.back()
        assert bench.ring.has_healthy()


@pytest.mark.parametrize(("every", "clean", "keep"), [(1, 2, 2), (1, 5, 2), (2, 7, 3)])
def test_snapshots_taken_faster_than_they_prove_themselves_still_do(
    every: int, clean: int, keep: int
) -> None:
    bench = Bench(every_steps=every, clean_steps=clean, keep=keep).clean(40)
    assert bench.back() >= 40 - 2 * clean - 2 * every


def test_memory_is_reused() -> None:
    bench = Bench(keep=2).clean(30)
    seen = {s.parameters.copies[0].data_ptr() for s in bench.ring._snapshots}
    for _ in range(4):
        bench.clean(25)
        bench.back()
        bench.ring.drop_candidates()
        seen |= {s.parameters.copies[0].data_ptr() for s in bench.ring._snapshots}
    assert len(seen) == 2


@pytest.mark.parametrize("keep", [2, 3, 5])
def test_no_more_snapshots_are_held_than_asked_for(keep: int) -> None:
    bench = Bench(keep=keep).clean(200)
    assert len(bench.ring._snapshots) + len(bench.ring._free) == keep


def train(model: nn.Module, optimizer: torch.optim.Optimizer, steps: int, seed: int = 0) -> None:
    generator = torch.Generator().manual_seed(seed)
    for _ in range(steps):
        optimizer.zero_grad()
        model(torch.randn(16, 8, generator=generator)).square().mean().backward()
        optimizer.step()


def state(model: nn.Module, optimizer: torch.optim.Optimizer) -> dict[str, Any]:
    return copy.deepcopy({"model": model.state_dict(), "optimizer": optimizer.state_dict()})


@pytest.mark.parametrize("name", ["SGD", "Adam", "NAdam", "RAdam", "Rprop", "ASGD", "Adafactor", "RMSprop"])
@pytest.mark.parametrize("first", [0, 1, 3])
def test_the_optimizer_comes_back_as_it_was(name: str, first: int) -> None:
    """At ``first`` 0 its state was empty: the layout differs and is rebuilt."""
    model = network()
    options = {"momentum": 0.9} if name == "SGD" else {}
    optimizer = getattr(torch.optim, name)(model.parameters(), lr=1e-3, **options)
    train(model, optimizer, first)
    saved, store = state(model, optimizer), OptimizerStore()
    store.save(optimizer)
    train(model, optimizer, 4)
    optimizer.param_groups[0]["lr"] = 7.0
    store.restore(optimizer)
    assert not differences(saved["optimizer"], optimizer.state_dict())


def saved_adam() -> tuple[nn.Module, torch.optim.Adam, OptimizerStore, dict[str, Any]]:
    """A trained Adam, the store that holds its state, and a copy of that."""
    model = network()
    optimizer = torch.optim.Adam(model.parameters())
    train(model, optimizer, 2)
    store = OptimizerStore()
    store.save(optimizer)
    return model, optimizer, store, copy.deepcopy(optimizer.state_dict())


def test_a_replaced_optimizer_state_is_found() -> None:
    """``load_state_dict`` puts new tensors in place: a cached list of them would go stale."""
    model, optimizer, store, saved = saved_adam()
    train(model, optimizer, 2)
    optimizer.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    store.restore(optimizer)
    assert not differences(saved, optimizer.state_dict())


def test_a_restored_state_shares_no_memory_with_its_copy() -> None:
    model, optimizer, store, saved = saved_adam()
    for clear_first in (False, True):
        if clear_first:
            optimizer.state.clear()
        store.restore(optimizer)
        train(model, optimizer, 3)
    store.restore(optimizer)
    assert not differences(saved, optimizer.state_dict())


def test_nested_values_of_a_state_come_back() -> None:
    weight = nn.Parameter(torch.zeros(2))
    optimizer = torch.optim.SGD([weight], lr=0.1)
    optimizer.state[weight] = {"history": [torch.ones(2)], "count": 1, "name": "a"}
    store = OptimizerStore()
    store.save(optimizer)
    optimizer.state[weight]["history"][0].fill_(5.0)
    optimizer.state[weight] |= {"count": 2, "extra": 3}
    store.restore(optimizer)
    expected = {"history": [torch.ones(2)], "count": 1, "name": "a"}
    assert not differences(expected, optimizer.state[weight])


def test_what_other_code_keeps_in_the_optimizer_is_unchanged() -> None:
    weight = nn.Parameter(torch.zeros(2))
    optimizer = torch.optim.Adam([weight])
    store = OptimizerStore()
    store.save(optimizer)
    optimizer.state["note"] = 1  # type: ignore[index]
    weight.grad = torch.ones(2)
    optimizer.step()
    store.restore(optimizer)
    assert dict(optimizer.state) == {"note": 1}


@pytest.mark.parametrize("place", ["device", "host"])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.int64, torch.bool, torch.float64], ids=str)
def test_tensors_of_any_dtype_come_back_in_place(dtype: torch.dtype, place: Place) -> None:
    tensors = [torch.ones(3, dtype=dtype), torch.zeros((), dtype=dtype), torch.zeros(0, dtype=dtype)]
    before, places = [t.clone() for t in tensors], [t.data_ptr() for t in tensors]
    store = TensorStore(place)
    store.save(tensors)
    for tensor in tensors:
        tensor.fill_(0 if tensor.any() else 1)
    store.restore(tensors)
    assert not differences(before, tensors)
    assert [t.data_ptr() for t in tensors] == places


def test_tied_weights_are_saved_once_and_stay_tied() -> None:
    model = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4))
    model[1].weight = model[0].weight
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    ring = SnapshotRing(SnapshotConfig(), Subject(model, optimizer, {}))
    ring.take(0, healthy=True)
    before = model[0].weight.detach().clone()
    with torch.no_grad():
        model[0].weight.zero_()
    target = ring.target()
    assert target is not None
    ring.restore(target, keep=frozenset())
    assert torch.equal(model[1].weight, before)
    assert model[1].weight is model[0].weight


def test_a_shared_buffer_is_written_back_in_place() -> None:
    model = nn.Sequential(nn.BatchNorm1d(2), nn.BatchNorm1d(2))
    values: list[Tensor | None] = [None if b is None else b.clone() for b in Buffers(model).read()]
    place = model[0].running_mean.data_ptr()
    model(torch.randn(5, 2))
    Buffers(model).write(values)
    assert model[0].running_mean.data_ptr() == place
    assert not differences(values, Buffers(model).read())
