"""Checkpoints of several ranks: each writes its part, and any world size reads them."""

from __future__ import annotations

import random
import resource
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.distributed as dist

from jobs.checkpoints import CheckpointManager, newest_step
from tests.guard.ranks import on_ranks
from tests.jobs.checkpoints.checkpoint_fixture import Messages, names, parts, proven, train

pytestmark = pytest.mark.slow


def test_ranks_write_parts_and_another_world_size_reads_them(tmp_path: Path) -> None:
    with_two = on_ranks(2, train_alike, tmp_path)
    files = names(tmp_path / "checkpoints" / "step-00000010")
    assert [name for name in files if name.startswith("shard-")] == [
        "shard-00001-model-00001-of-00001.safetensors",
        "shard-00002-model-00001-of-00001.safetensors",
    ]
    sizes = [(tmp_path / "checkpoints" / "step-00000010" / name).stat().st_size for name in files[1:3]]
    assert max(sizes) < 2 * min(sizes)
    assert torch.equal(with_two[0]["weights"], with_two[1]["weights"])

    (tmp_path / "store").unlink(missing_ok=True)
    again = on_ranks(2, load_only, tmp_path)
    for rank in range(2):
        assert torch.equal(again[rank]["weights"], with_two[rank]["weights"])
        assert torch.equal(again[rank]["next"], with_two[rank]["next"]), "every rank draws what it would have"
        assert torch.equal(again[rank]["buffer"], torch.zeros(8)), "buffers are rank 0's"
    assert not torch.equal(again[0]["next"], again[1]["next"])

    (tmp_path / "store").unlink(missing_ok=True)
    (alone,) = on_ranks(1, load_and_save, tmp_path)
    assert torch.equal(alone["weights"], with_two[0]["weights"])
    assert newest_step(tmp_path / "checkpoints") == 20

    (tmp_path / "store").unlink(missing_ok=True)
    grown = on_ranks(2, load_only, tmp_path)
    assert [rank["step"] for rank in grown] == [20, 20]
    assert all(torch.equal(rank["weights"], alone["weights"]) for rank in grown)


def test_a_rank_that_cannot_write_fails_the_save_on_all_and_the_next_one_works(tmp_path: Path) -> None:
    messages = on_ranks(2, one_cannot_write, tmp_path)
    expected = "warning: no checkpoint of step 10: File too large; training continues"
    assert messages == [[expected], [expected]]
    assert names(tmp_path / "checkpoints") == ["step-00000020"]


def weights(state: dict[str, Any]) -> torch.Tensor:
    return torch.cat([p.detach().flatten() for p in state["model"].parameters()])


def train_alike(rank: int, world_size: int, folder: Path) -> dict[str, Any]:
    state = parts()
    random.seed(1)
    np.random.seed(1)
    train(state, 2)  # the same on all ranks, as after an all-reduce
    with torch.no_grad():
        state["model"][1].running_mean.fill_(float(rank))  # but buffers are each rank's own
    torch.manual_seed(rank)
    checkpoints = CheckpointManager(folder / "checkpoints", state)
    checkpoints.load_latest()
    proven(checkpoints, 5, 10)
    dist.barrier()  # rank 0 has committed before anybody looks
    return {"weights": weights(state), "next": torch.rand(3)}


def load_only(rank: int, world_size: int, folder: Path) -> dict[str, Any]:
    state = parts()
    step = CheckpointManager(folder / "checkpoints", state).load_latest()
    buffer = state["model"][1].running_mean.clone()
    return {"step": step, "weights": weights(state), "next": torch.rand(3), "buffer": buffer}


def load_and_save(rank: int, world_size: int, folder: Path) -> dict[str, Any]:
    state = parts()
    checkpoints = CheckpointManager(folder / "checkpoints", state)
    assert checkpoints.load_latest() == 10
    loaded = weights(state)
    proven(checkpoints, 20)
    return {"weights": loaded}


def one_cannot_write(rank: int, world_size: int, folder: Path) -> list[str]:
    messages = Messages()
    checkpoints = CheckpointManager(folder / "checkpoints", parts(), notify=messages)
    unlimited = resource.getrlimit(resource.RLIMIT_FSIZE)
    if rank == 1:  # the system lets this process write no file beyond 100 bytes
        resource.setrlimit(resource.RLIMIT_FSIZE, (100, unlimited[1]))
    proven(checkpoints, 10)
    resource.setrlimit(resource.RLIMIT_FSIZE, unlimited)
    proven(checkpoints, 20)
    dist.barrier()
    return list(messages)
