"""Tensor and sequence parallel for the gpt.

Shoeybi et al., "Megatron-LM" (2019), section 3: the MLP's and the attention's matrices are divided by
columns, then by rows. Korthikanti et al., "Reducing Activation Recomputation in Large Transformer Models"
(2022), section 4.2: between them each rank has a part of the sequence.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.tensor import DTensor, Partial, Replicate, Shard
from torch.distributed.tensor.parallel import (
    ColwiseParallel,
    PrepareModuleInput,
    RowwiseParallel,
    SequenceParallel,
    parallelize_module,
)
from torch.nn import functional

from jobs.models.gpt import GPT, Attention


def divide(model: GPT, mesh: DeviceMesh) -> None:
    """Divides a gpt over the ranks of ``mesh`` [tensor], in place; outputs are whole on each rank."""
    parallelize_module(model, mesh, _outside())
    model.head.weight = model.embedding.weight  # each was divided by itself
    for block in model.blocks:
        parallelize_module(block, mesh, _inside(block))
        attention = block.get_submodule("attention")
        assert isinstance(attention, Attention)
        attention.qkv.register_forward_hook(_OwnHeads(mesh, attention.heads))
    _allow_any_length(model, mesh.size())


def _outside() -> dict[str, Any]:
    parts = Shard(1)  # of [samples, positions, width]
    return {
        "embedding": RowwiseParallel(input_layouts=Replicate(), output_layouts=parts),
        "norm": SequenceParallel(),
        "head": ColwiseParallel(input_layouts=parts, output_layouts=Replicate()),
    }


def _inside(block: nn.Module) -> dict[str, Any]:
    parts = Shard(1)
    gate = {} if getattr(block.mlp, "gate", None) is None else {"mlp.gate": ColwiseParallel()}
    return {
        "attention_norm": SequenceParallel(),
        "attention": PrepareModuleInput(
            input_layouts=(parts, None), desired_input_layouts=(Replicate(), None)
        ),
        "attention.qkv": ColwiseParallel(use_local_output=False),
        "attention.out": RowwiseParallel(output_layouts=parts),
        "mlp_norm": SequenceParallel(),
        "mlp": PrepareModuleInput(input_layouts=parts, desired_input_layouts=Replicate()),
        "mlp.up": ColwiseParallel(),
        "mlp.out": RowwiseParallel(output_layouts=parts),
        **gate,
    }


class _OwnHeads:
    """Queries, keys and values of this rank's heads, [samples, positions, 3 * own heads * head width].

    The rows of ``qkv`` are all queries, then all keys, then all values; divided evenly, no rank has all three
    of a head. So their outputs are gathered, and each rank takes its heads: the weights stay in the order in
    which every checkpoint has them.
    """

    def __init__(self, mesh: DeviceMesh, heads: int) -> None:
        self._mesh, self._heads = mesh, heads

    def __call__(self, _: nn.Module, __: Any, output: DTensor) -> Tensor:
        # All-gather over the tensor-parallel ranks, which all compute the same samples; its backward adds up
        # what each rank has for its own heads.
        whole = output.redistribute(self._mesh, [Replicate()]).to_local(grad_placements=[Partial()])
        split = whole.unflatten(-1, (3, self._heads, -1))
        return split.chunk(self._mesh.size(), dim=3)[self._mesh.get_local_rank()].flatten(2)


def _allow_any_length(model: nn.Module, ranks: int) -> None:
    """Pads the sequence at its end to a multiple of ``ranks``; with causal attention nothing sees that."""
    lengths: list[int] = []

    def pad(_: nn.Module, inputs: tuple[Tensor]) -> tuple[Tensor]:
        lengths[:] = [inputs[0].shape[1]]
        return (functional.pad(inputs[0], (0, -lengths[0] % ranks)),)

    def cut(_: nn.Module, __: Any, logits: Tensor) -> Tensor:
        return logits[:, : lengths[0]].to(torch.float32, copy=True)  # FSDP2 refuses a view

    model.register_forward_pre_hook(pad)
    model.register_forward_hook(cut)
