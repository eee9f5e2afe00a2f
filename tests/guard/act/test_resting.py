"""A bit that flips between two steps, in a shard that one rank alone holds, is found and leaves no trace."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import DTensor

from guard import GradientGuard, GuardConfig
from guard.act.resting import Resting
from guard.faults.injector import flip_bit_
from guard.observe.shards import local
from guard.types import Floats
from tests.guard.layouts import Layout, Uneven, _data_parallel, _sharded, batch, experts_plain, made
from tests.guard.loops import Cursor, differences
from tests.guard.ranks import on_ranks

STEPS = 14


class Flip(NamedTuple):
    moment: bool
    bit: int
    rank: int
    parameter: int
    late: bool


def drawn() -> list[Flip]:
    chance = random.Random(0)

    def flip(i: int) -> Flip:
        return Flip(i % 2 == 1, chance.randrange(32), i // 2, chance.randrange(8), late=chance.random() < 0.5)

    return [flip(i) for i in range(4)]


def fsdp2() -> Layout:
    return _data_parallel(_sharded(made(Uneven), init_device_mesh("cpu", (2,))))


def train(rank: int, layout: Layout, flip: Flip | None, parameters: list[Any]) -> dict[str, Any]:
    cursor = Cursor()
    config = {"replicas": 1, "snapshot": {"every_steps": 3}, "clip": {"kind": "off"}}
    guard = GradientGuard(
        layout.model, layout.optimizer, GuardConfig.model_validate(config), data=cursor, **layout.arguments
    )
    reports: list[Any] = []
    while guard.steps < STEPS:
        now = flip is not None and len(reports) == 8 and rank == flip.rank
        if flip is not None and now and not flip.late:
            damage(layout, flip, parameters)
        layout.optimizer.zero_grad()
        guard.backward(layout.loss(*batch(cursor.position)))
        cursor.position += 1
        if flip is not None and now and flip.late:
            damage(layout, flip, parameters)
        reports.append(guard.step())
    found = [(r.incident.attempt, r.incident.faulty_ranks) for r in reports if r.incident is not None]
    return {"found": found, "weights": [local(p).detach().clone() for p in layout.model.parameters()]}


def damage(layout: Layout, flip: Flip, parameters: list[Any]) -> None:
    parameter = parameters[flip.parameter % len(parameters)]
    state = layout.optimizer.state[parameter]["momentum_buffer"] if flip.moment else parameter
    flip_bit_(local(state.detach()), 0, flip.bit)


def scenarios(rank: int, world_size: int, folder: Path) -> dict[str, Any]:
    runs: dict[str, Any] = {"fsdp2": [], "experts": []}
    for flip in (None, *drawn()):
        layout = fsdp2()
        shards = [p for p in layout.model.parameters() if isinstance(p, DTensor) and local(p).numel()]
        runs["fsdp2"].append(train(rank, layout, flip, shards))
    for flip in (None, *drawn()[:1]):
        layout = experts_plain()
        runs["experts"].append(train(rank, layout, flip, [layout.model.experts]))
    return runs


@pytest.mark.slow
def test_a_flipped_bit_of_a_shard_leaves_no_trace(tmp_path: Path) -> None:
    for seen in on_ranks(2, scenarios, tmp_path):
        for plain, *flipped in seen.values():
            assert not plain["found"]
            for flip, run in zip(drawn(), flipped, strict=False):
                assert run["found"][0] == (9, [flip.rank]), (flip, run["found"])
                assert not differences(plain["weights"], run["weights"]), flip


class Alone:
    """A watched part of a larger tensor, and its optimizer."""

    def __init__(self) -> None:
        self.parameters = [nn.Parameter(torch.randn(100)), nn.Parameter(torch.randn(7))]
        self.names = ["one", "other"]
        self.shards = type("Divided", (), {"divided": {0, 1}})()
        self.optimizer = torch.optim.SGD(self.parameters, momentum=0.9)


def alone(rows: list[Any]) -> tuple[Alone, Resting]:
    def exchange(row: Any) -> Floats:
        rows.append(list(row))
        return torch.tensor([row], dtype=torch.float64).numpy()

    held = Alone()
    return held, Resting(held.optimizer, held, 1, exchange)  # type: ignore[arg-type]


def test_what_a_loop_changes_on_purpose_is_no_damage() -> None:
    held, resting = alone([])
    for change in (lambda p: p.mul_(0.5), lambda p: p.clamp_(-0.1, 0.1), lambda p: p[:3].zero_()):
        resting.note(1)
        with torch.no_grad():
            change(held.parameters[0])
        assert resting.changed() == []


def test_one_bit_is_found_once_and_names_its_tensor() -> None:
    held, resting = alone([])
    resting.note(1)
    flip_bit_(held.parameters[1], 3, 0)
    assert [found.tensor for found in resting.changed()] == ["weight other"]
    resting.note(2)
    assert resting.changed() == []


def test_between_checks_the_ranks_exchange_nothing() -> None:
    rows: list[Any] = []
    _, resting = alone(rows)
    assert resting.changed() == []
    resting.note(1)
    resting.forget()
    assert resting.changed() == []
    assert rows == []
