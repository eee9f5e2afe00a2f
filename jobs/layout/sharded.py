"""FSDP2, HSDP and tensor parallel, applied to a model: Zhao et al., "PyTorch FSDP" (2023)."""

from __future__ import annotations

from typing import Any, Literal

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.fsdp import CPUOffloadPolicy, MixedPrecisionPolicy, fully_shard

from jobs.layout.activations import checkpoint_activations
from jobs.layout.blocks import blocks_of
from jobs.layout.mesh import TENSOR, data_mesh
from jobs.models.gpt import GPT
from jobs.spec.parallel import ParallelSpec

Precision = Literal["fp32", "bf16", "fp16"]


def shard_model(
    model: nn.Module, parallel: ParallelSpec, mesh: DeviceMesh, precision: Precision
) -> nn.Module:
    """Divides a model, which may be on the meta device, in place. Collective only where it is not.

    Args:
        model: the bare module.
        parallel: how.
        mesh: of ``make_mesh``.
        precision: ``bf16`` computes and gathers in bfloat16, and keeps and reduces in float32.

    Raises:
        WorkloadError: the model has no blocks.
    """
    blocks = blocks_of(model)
    if parallel.tensor > 1:
        from jobs.layout.tensor import divide

        assert isinstance(model, GPT)  # the spec was checked
        divide(model, mesh[TENSOR])
    checkpoint_activations(blocks, parallel.activation_checkpointing)
    half = torch.bfloat16 if precision == "bf16" else None
    options: dict[str, Any] = {
        "mesh": data_mesh(mesh),
        "reshard_after_forward": parallel.reshard_after_forward,
    }
    if parallel.cpu_offload:
        options["offload_policy"] = CPUOffloadPolicy(pin_memory=mesh.device_type == "cuda")
    inner = MixedPrecisionPolicy(half, torch.float32 if half else None, cast_forward_inputs=False)
    outer = MixedPrecisionPolicy(half, torch.float32 if half else None, torch.float32 if half else None)
    for module in (*blocks, model):
        module.register_forward_hook(_without_views)
    for block in blocks:
        fully_shard(block, mp_policy=inner, **options)
    fully_shard(model, mp_policy=outer, **options)
    _share_buffers(model)
    return model


def _without_views(_: nn.Module, __: Any, output: Any) -> Any:
    """A copy of an output that is a view: an in-place operation on it would drop FSDP2's hook on it."""
    return output.clone() if isinstance(output, Tensor) and output._is_view() else output


def _share_buffers(model: nn.Module) -> None:
    """Each forward pass in training begins with rank 0's buffers (BatchNorm statistics), as in DDP."""
    if not any(True for _ in model.buffers()):
        return

    def share(module: nn.Module, _: Any) -> None:
        if module.training and torch.is_grad_enabled():
            for buffer in module.buffers():
                # Broadcast from rank 0; every rank runs as many forward passes.
                dist.broadcast(buffer, src=0)

    model.register_forward_pre_hook(share, prepend=True)
