"""Shards of a checkpoint stay in main memory, wherever the model is."""

from __future__ import annotations

import torch
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.tensor import DTensor, Shard
from torch.distributed.tensor._dtensor_spec import DTensorSpec, TensorMeta

from guard.observe.shards import local
from jobs.checkpoints.shards import like_sharded, own_part


def on_gpus(rank: int) -> DTensor:
    """The shard of one of two ranks of a mesh of GPUs, which need not be there."""
    mesh = DeviceMesh("cuda", torch.arange(2), _init_backend=False, _rank=rank)
    spec = DTensorSpec(mesh, (Shard(0),), TensorMeta(torch.Size([3, 2]), (2, 1), torch.float32))
    return DTensor(torch.zeros(2 - rank, 2), spec, requires_grad=False)


def test_a_staged_shard_is_not_moved_to_the_device_of_its_mesh() -> None:
    part = torch.ones(2, 2)
    staged = like_sharded(part, on_gpus(0))
    assert staged.shape == (3, 2)
    assert local(staged).data_ptr() == part.data_ptr()


def test_each_rank_cuts_its_own_part_of_a_whole_tensor() -> None:
    whole = torch.arange(6.0).view(3, 2)
    assert torch.equal(torch.cat([own_part(whole, on_gpus(rank)) for rank in (0, 1)]), whole)
