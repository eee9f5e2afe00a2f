"""What the guard reads of FSDP2's own state, which torch keeps private."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn


def parameter_groups(model: nn.Module) -> list[Any]:
    """The groups of parameters that are gathered and reduced together."""
    from torch.distributed.fsdp import FSDPModule  # a second to import, and used by divided models alone

    return [group for m in model.modules() if isinstance(m, FSDPModule) for group in _of_module(m)]


def gathered(model: nn.Module) -> list[Tensor]:
    """The whole parameters that forward used, for which autograd computes gradients; not the shards."""
    parameters = [parameter for group in parameter_groups(model) for parameter in group.fsdp_params]
    return [p._unsharded_param for p in parameters if hasattr(p, "_unsharded_param")]


def _of_module(module: Any) -> list[Any]:
    """Releases of torch before 2.13 have at most one."""
    state = module._get_fsdp_state()
    found = getattr(state, "_fsdp_param_groups", None)
    return list(found) if found is not None else [g for g in [state._fsdp_param_group] if g is not None]
