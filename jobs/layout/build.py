"""The model of a job whose layout is not DDP."""

from __future__ import annotations

import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.fsdp import FSDPModule

from jobs.init import build_initialized
from jobs.layout.first_weights import fill, on_meta
from jobs.layout.memory import MOST_WEIGHTS
from jobs.layout.mesh import make_mesh
from jobs.layout.sharded import shard_model
from jobs.spec.job_spec import JobSpec
from jobs.workloads.base import Workload


def build_sharded(spec: JobSpec, workload: Workload, device: torch.device) -> nn.Module:
    """The initialized model, divided over all ranks; its weights are to the bit those of the whole one.

    Collective: every rank builds its part, and waits for rank 0, which builds the whole model.

    Raises:
        WorkloadError: the model has no blocks.
    """
    mesh = make_mesh(spec.parallel, dist.get_world_size(), device.type)
    if device.type == "cuda":
        torch.cuda.set_device(device)
    model = shard_model(on_meta(workload.build_model), spec.parallel, mesh, spec.train.precision)
    whole = build_initialized(spec, workload) if dist.get_rank() == 0 else None
    fill(model, whole, device, offloaded=spec.parallel.cpu_offload)
    return model


def whole_for_preflight(spec: JobSpec, workload: Workload, model: nn.Module) -> nn.Module | None:
    """A whole model with the first weights, on the CPU; None where it has too many for one worker."""
    if sum(parameter.numel() for parameter in model.parameters()) > MOST_WEIGHTS:
        return None
    return build_initialized(spec, workload)


def free_gathered(model: nn.Module) -> None:
    """Frees the whole weights that a forward pass without a backward pass has left."""
    for module in model.modules():
        if isinstance(module, FSDPModule):
            module.reshard()
