"""Which ranks share what: replicas of shards of tensor-parallel groups."""

from __future__ import annotations

from torch.distributed.device_mesh import DeviceMesh, init_device_mesh

from jobs.spec.parallel import ParallelSpec

REPLICATE, SHARD, TENSOR = "replicate", "shard", "tensor"


def make_mesh(parallel: ParallelSpec, world_size: int, device_type: str) -> DeviceMesh:
    """A mesh [replicas, shards, tensor] of all ranks; the ranks of a tensor-parallel group are neighbours.

    Collective: makes process groups. Every rank calls it once, at the start of a run.
    """
    shape = (parallel.replicas(world_size), parallel.shards(world_size), parallel.tensor)
    return init_device_mesh(device_type, shape, mesh_dim_names=(REPLICATE, SHARD, TENSOR))


def data_mesh(mesh: DeviceMesh) -> DeviceMesh:
    """The part over which ``fully_shard`` works: one dimension for FSDP2, two where there are replicas."""
    replicated = mesh[REPLICATE].size() > 1 or mesh[SHARD].size() == 1
    return mesh[REPLICATE, SHARD] if replicated else mesh[SHARD]
