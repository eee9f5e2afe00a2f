"""Sharded tensors in a checkpoint: every rank writes its shard, reads whole tensors, and cuts its new shard.

So a model sharded by FSDP2 (``fully_shard``) can continue on another number of ranks. While it is read, each
rank holds one whole copy of the state in main memory.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn
from torch.optim import Optimizer

from guard.observe.shards import is_distributed, local


def lay_out(state: Any, part: Any) -> Any:
    """A state dict of whole tensors, cut into this rank's shards where ``part`` is sharded.

    Args:
        state: whole tensors, from a checkpoint.
        part: what it is loaded into; modules and optimizers may contain ``DTensor``s.
    """
    if isinstance(part, nn.Module):
        now = part.state_dict()
        return {name: _cut(value, now.get(name)) for name, value in state.items()}
    if not isinstance(part, Optimizer):
        return state
    # A moment is laid out as its parameter; the state dict names parameters by their index in the groups.
    parameters = dict(enumerate(p for group in part.param_groups for p in group["params"]))
    moments = {
        place: {name: _cut(value, parameters.get(place)) for name, value in of_one.items()}
        for place, of_one in state["state"].items()
    }
    return {**state, "state": moments}


def _cut(value: Any, like: Any) -> Any:
    """This rank's shard of a whole tensor, if ``like`` is a sharded tensor of its shape; no communication."""
    if not isinstance(value, Tensor) or not isinstance(like, Tensor):
        return value
    if is_distributed(value) or not is_distributed(like) or value.shape != like.shape:
        return value
    part = own_part(value, like).to(local(like).device, copy=True)
    return like_sharded(part, like)


def like_sharded(part: Tensor, like: Tensor) -> Tensor:
    """The tensor laid out as ``like`` of which ``part`` is this rank's part, on whatever device that is.

    ``DTensor.from_local`` would move it to the mesh's: the copies of a checkpoint back onto the GPU.
    """
    if not is_distributed(like):
        return part
    from torch.distributed.tensor import DTensor

    assert isinstance(like, DTensor)
    return DTensor(part, like._spec, requires_grad=False)


def own_part(whole: Tensor, like: Any) -> Tensor:
    """The part of a whole tensor that this rank has of one laid out as ``like``, a ``DTensor``; a view."""
    from torch.distributed.tensor._utils import compute_local_shape_and_global_offset

    shape, offset = compute_local_shape_and_global_offset(like.shape, like.device_mesh, like.placements)
    return whole[tuple(slice(start, start + size) for start, size in zip(offset, shape, strict=True))]
