"""Activation checkpointing: a block's activations are computed again in its backward pass.

Chen et al., "Training Deep Nets with Sublinear Memory Cost" (2016). Selective: Korthikanti et al., "Reducing
Activation Recomputation in Large Transformer Models" (2022), section 5.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, Literal

import torch
from torch import nn
from torch.utils.checkpoint import CheckpointPolicy, checkpoint, create_selective_checkpoint_contexts

_EVERY = 2
_PRODUCTS = {torch.ops.aten.mm.default, torch.ops.aten.addmm.default}
_ATTENTION = {
    torch.ops.aten._scaled_dot_product_efficient_attention.default,
    torch.ops.aten._scaled_dot_product_flash_attention.default,
    torch.ops.aten._scaled_dot_product_flash_attention_for_cpu.default,
}


def checkpoint_activations(blocks: Sequence[nn.Module], how: Literal["none", "block", "selective"]) -> None:
    """Makes each block compute its activations again; names of modules and parameters do not change."""
    if how == "none":
        return
    options: dict[str, Any] = {"context_fn": selective} if how == "selective" else {}
    for block in blocks:
        run = partial(checkpoint, block.forward, use_reentrant=False, **options)
        block.forward = _only_in_training(block, block.forward, run)


def _only_in_training(
    block: nn.Module, plain: Callable[..., Any], recomputed: Callable[..., Any]
) -> Callable[..., Any]:
    def forward(*args: Any, **kwargs: Any) -> Any:
        return (recomputed if block.training and torch.is_grad_enabled() else plain)(*args, **kwargs)

    return forward


def selective() -> Any:
    """Contexts that keep attention and every other matrix product of one block."""
    seen = {False: 0, True: 0}

    def policy(context: Any, operation: Any, *_: Any, **__: Any) -> CheckpointPolicy:
        if operation in _ATTENTION:
            return CheckpointPolicy.MUST_SAVE
        if operation not in _PRODUCTS:
            return CheckpointPolicy.PREFER_RECOMPUTE
        seen[context.is_recompute] += 1
        kept = seen[context.is_recompute] % _EVERY == 0
        return CheckpointPolicy.MUST_SAVE if kept else CheckpointPolicy.PREFER_RECOMPUTE

    return create_selective_checkpoint_contexts(policy)
