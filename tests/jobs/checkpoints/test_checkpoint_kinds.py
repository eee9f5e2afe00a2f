"""Every kind of state comes back to the bit: sharded weights, the loss scale, the moving average."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor

from jobs.checkpoints import CheckpointManager
from jobs.checkpoints.export import export_model
from jobs.checkpoints.load import read
from jobs.run_dir.open_storage import open_storage
from jobs.training.stepper import make_average, make_scaler
from tests.guard.ranks import on_ranks
from tests.jobs.checkpoints.checkpoint_fixture import proven


def network() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(6, 17), nn.BatchNorm1d(17), nn.Linear(17, 1))


def moved(model: nn.Module, optimizer: torch.optim.Optimizer, steps: int) -> None:
    for _ in range(steps):
        optimizer.zero_grad()
        model(torch.randn(8, 6)).square().mean().backward()
        optimizer.step()


def test_the_loss_scale_and_the_moving_average_continue_to_the_bit(tmp_path: Path) -> None:
    saved, again = fp16_parts(), fp16_parts()
    fp16_steps(saved, 7)
    proven(CheckpointManager(tmp_path, saved), 7)
    assert saved["scaler"].get_scale() != again["scaler"].get_scale(), "an overflow has halved it"
    assert CheckpointManager(tmp_path, again).load_latest() == 7
    for part in (saved, again):
        torch.manual_seed(3)
        fp16_steps(part, 4)
    assert saved["scaler"].state_dict() == again["scaler"].state_dict()
    assert saved["average"].n_averaged == again["average"].n_averaged
    for name in ("model", "average"):
        assert_equal(saved[name].state_dict(), again[name].state_dict())


@pytest.mark.slow
def test_shards_are_written_by_their_ranks_and_read_by_any_number_of_them(tmp_path: Path) -> None:
    with_two = on_ranks(2, save_sharded, tmp_path)
    assert_equal(with_two[0]["continued"], with_two[1]["continued"])
    content = read(open_storage(tmp_path / "checkpoints"), "step-00000010")
    exported = tmp_path / "model.pt"
    export_model(content, exported)
    assert_equal(torch.load(exported, weights_only=True), with_two[0]["saved"])
    for world_size in (2, 1):
        (tmp_path / "store").unlink()
        for rank in on_ranks(world_size, load_sharded, tmp_path):
            assert rank["sharded"]
            assert_equal(rank["loaded"], with_two[0]["saved"])
            assert_equal(rank["moments"], with_two[0]["moments"])
            if world_size == 2:
                assert_equal(rank["continued"], with_two[0]["continued"])


def fp16_parts() -> dict[str, Any]:
    model = network()
    scaler = make_scaler(torch.device("cpu"), "fp16")
    return {
        "model": model,
        "optimizer": torch.optim.AdamW(model.parameters(), lr=0.01),
        "scaler": scaler,
        "average": make_average(model, 0.9),
    }


def fp16_steps(parts: dict[str, Any], steps: int) -> None:
    scaler, optimizer = parts["scaler"], parts["optimizer"]
    for step in range(steps):
        optimizer.zero_grad()
        loss = parts["model"](torch.randn(8, 6)).square().mean()
        scaler.scale(loss * (float("inf") if step == 2 else 1.0)).backward()
        scaler.step(optimizer)
        scaler.update()
        parts["average"].update_parameters(parts["model"])


def sharded_parts(world_size: int) -> dict[str, Any]:
    """The last layer has one row: of two ranks, one holds none of it."""
    model = network()
    mesh = init_device_mesh("cpu", (world_size,))
    for layer in (model[0], model[2]):
        fully_shard(layer, mesh=mesh)
    fully_shard(model, mesh=mesh)
    return {"model": model, "optimizer": torch.optim.AdamW(model.parameters(), lr=0.01)}


def save_sharded(rank: int, world_size: int, folder: Path) -> dict[str, Any]:
    parts = sharded_parts(world_size)
    moved(parts["model"], parts["optimizer"], 3)
    checkpoints = CheckpointManager(folder / "checkpoints", parts)
    proven(checkpoints, 10)
    dist.barrier()
    saved = seen(parts)
    torch.manual_seed(5)
    moved(parts["model"], parts["optimizer"], 2)
    return {**saved, "saved": saved["loaded"], "continued": whole(parts["model"].state_dict())}


def load_sharded(rank: int, world_size: int, folder: Path) -> dict[str, Any]:
    parts = sharded_parts(world_size)
    assert CheckpointManager(folder / "checkpoints", parts).load_latest() == 10
    loaded = seen(parts)
    torch.manual_seed(5)
    moved(parts["model"], parts["optimizer"], 2)
    return {**loaded, "continued": whole(parts["model"].state_dict())}


def seen(parts: dict[str, Any]) -> dict[str, Any]:
    states = [parts["optimizer"].state[p] for p in parts["model"].parameters()]
    moments = {f"{i}.{key}": value for i, state in enumerate(states) for key, value in state.items()}
    sharded = all(isinstance(p, DTensor) for p in parts["model"].parameters())
    return {"loaded": whole(parts["model"].state_dict()), "moments": whole(moments), "sharded": sharded}


def whole(state: dict[str, Tensor]) -> dict[str, Tensor]:
    full = {name: t.full_tensor() if isinstance(t, DTensor) else t for name, t in state.items()}
    return {name: t.detach().clone() for name, t in full.items()}


def assert_equal(one: dict[str, Tensor], other: dict[str, Tensor]) -> None:
    assert one.keys() == other.keys()
    assert [name for name in one if not torch.equal(one[name], other[name])] == []
