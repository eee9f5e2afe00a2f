"""What the guard reads of FSDP2's own state, which torch keeps private."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch.distributed as dist
from torch import Tensor, nn

from guard.observe.shards import is_distributed


def parameter_groups(model: nn.Module) -> list[Any]:
    """The groups of parameters that are gathered and reduced together."""
    from torch.distributed.fsdp import FSDPModule  # a second to import, and used by divided models alone

    return [group for m in model.modules() if isinstance(m, FSDPModule) for group in _of_module(m)]


def gathered(model: nn.Module) -> list[Tensor]:
    """The whole parameters that forward used, for which autograd computes gradients; not the shards."""
    parameters = [parameter for group in parameter_groups(model) for parameter in group.fsdp_params]
    return [p._unsharded_param for p in parameters if hasattr(p, "_unsharded_param")]


def fully_sharded(parameters: Sequence[Tensor]) -> bool:
    """Whether each rank computes whole gradients, of its own part of the batch, as under FSDP2 and HSDP."""
    return all(map(_is_fully_sharded, parameters))


def _is_fully_sharded(parameter: Any) -> bool:
    """Whether it is divided over the last dimension of a mesh of all ranks, and equal along the others."""
    if not is_distributed(parameter) or parameter.device_mesh.size() != dist.get_world_size():
        return False
    *others, last = parameter.placements
    return last.is_shard() and all(placement.is_replicate() for placement in others)


def _of_module(module: Any) -> list[Any]:
    """Releases of torch before 2.13 have at most one."""
    state = module._get_fsdp_state()
    found = getattr(state, "_fsdp_param_groups", None)
    return list(found) if found is not None else [g for g in [state._fsdp_param_group] if g is not None]
