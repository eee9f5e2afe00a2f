"""Under HSDP several ranks hold a shard: a bit that flips in one of them is found and leaves no trace."""

from __future__ import annotations

from pathlib import Path
from typing import Any, NamedTuple

import pytest
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import DTensor

from guard import GradientGuard, GuardConfig
from guard.faults.injector import flip_bit_
from tests.guard.layouts import Layout, Net, _data_parallel, _sharded, batch, made
from tests.guard.loops import Cursor, differences
from tests.guard.ranks import on_ranks

pytestmark = pytest.mark.slow
STEPS, EVERY = 16, 3


class Flip(NamedTuple):
    moment: bool
    bit: int
    rank: int
    parameter: int


FLIPS = (Flip(False, 23, 1, 0), Flip(True, 27, 2, 3), Flip(False, 3, 3, 5), Flip(True, 12, 0, 1))


def layout(replicas: int) -> Layout:
    mesh = init_device_mesh("cpu", (replicas, 4 // replicas), mesh_dim_names=("replicate", "shard"))
    return _data_parallel(_sharded(made(Net), mesh))


def train(rank: int, replicas: int, flip: Flip | None) -> dict[str, Any]:
    made = layout(replicas)
    cursor = Cursor()
    config = GuardConfig.model_validate(
        {"replicas": EVERY, "snapshot": {"every_steps": EVERY}, "clip": {"kind": "off"}}
    )
    guard = GradientGuard(made.model, made.optimizer, config, data=cursor)
    reports: list[Any] = []
    while guard.steps < STEPS:
        if flip is not None and len(reports) == 7 and rank == flip.rank:
            parameter: Any = list(made.model.parameters())[flip.parameter]
            damaged = made.optimizer.state[parameter]["momentum_buffer"] if flip.moment else parameter
            flip_bit_(damaged.to_local().detach(), 0, flip.bit)
        made.optimizer.zero_grad()
        guard.backward(made.loss(*batch(cursor.position)))
        cursor.position += 1
        reports.append(guard.step())
    found = [(r.incident.reason, r.incident.faulty_ranks) for r in reports if r.incident is not None]
    whole = [p.full_tensor() if isinstance(p, DTensor) else p for p in made.model.parameters()]
    return {"found": found, "weights": {str(i): w.detach().clone() for i, w in enumerate(whole)}}


def scenarios(rank: int, world_size: int, folder: Path) -> dict[int, list[dict[str, Any]]]:
    return {copies: [train(rank, copies, flip) for flip in (None, *FLIPS)] for copies in (2, 4)}


@pytest.fixture(scope="module")
def ranks(tmp_path_factory: pytest.TempPathFactory) -> list[dict[int, list[dict[str, Any]]]]:
    return on_ranks(4, scenarios, tmp_path_factory.mktemp("shards"))


@pytest.mark.parametrize("copies", [2, 4])
def test_a_flipped_bit_of_one_copy_of_a_shard_leaves_no_trace(ranks: Any, copies: int) -> None:
    for seen in ranks:
        plain, *flipped = seen[copies]
        assert not plain["found"]
        for flip, run in zip(FLIPS, flipped, strict=True):
            assert run["found"], flip
            assert not differences(plain["weights"], run["weights"]), flip
            assert any(flip.rank in faulty for _, faulty in run["found"]), (flip, run["found"])
