"""Where an attention layer makes its queries and keys, and how the logits of a head are rescaled there."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn

from guard.types import Floats

_FUSED = ("qkv", "c_attn", "to_qkv", "Wqkv", "qkv_proj")
"""Layers whose outputs are all queries, then all keys, then all values."""
_GROUPED = ("query_key_value",)
"""... for each key head its queries, the key and the value (GPT-NeoX, BLOOM, Falcon)."""
_LATENT = ("kv_b_proj",)
_PAIRS = (
    ("q_proj", "k_proj"),
    ("query", "key"),
    ("to_q", "to_k"),
    ("wq", "wk"),
    ("w_q", "w_k"),
    ("W_q", "W_k"),
    ("q_lin", "k_lin"),
    ("query_proj", "key_proj"),
    ("q", "k"),
)
_KEYS_AND_VALUES = (("q", "kv"), ("to_q", "to_kv"), ("q_proj", "kv_proj"))
"""Pairs of which the second makes all keys, then all values."""


@dataclass(frozen=True, slots=True)
class Projections:
    """Views of what makes queries and keys: the weights, and the biases.

    Queries are [key heads, queries of each, width, ...], keys [key heads, width, ...].
    """

    queries: list[Tensor]
    keys: list[Tensor]
    alone: tuple[Tensor, ...] = ()
    """Parts of queries whose keys all heads share and nothing scales: rotary ones of latent attention."""

    def rescale(self, factors: Floats) -> None:
        """Multiplies the logits of each head by its factor, [heads].

        A key head that several query heads share takes the square root of the least of theirs.
        """
        each = factors.reshape(self.queries[0].shape[:2])
        of_keys = np.sqrt(each.min(1))
        same = {view.data_ptr() for view in self.queries}  # one matrix for both: it is scaled once
        for view in self.queries:
            _multiply(view, each / of_keys[:, None])
        for view in self.keys:
            if view.data_ptr() not in same:
                _multiply(view, of_keys)
        for view in self.alone:
            _multiply(view, each)

    @property
    def parameters(self) -> list[Tensor]:
        """Whose views they are."""
        return [view if view._base is None else view._base for view in self._all]

    @property
    def place(self) -> int:
        """Equal where layers share their weights."""
        return self.queries[0].data_ptr()

    def saved(self) -> list[Tensor]:
        """A copy, for ``restore``."""
        return [view.clone() for view in self._all]

    def restore(self, saved: list[Tensor]) -> None:
        """To the bit."""
        for view, before in zip(self._all, saved, strict=True):
            view.copy_(before)

    @property
    def _all(self) -> tuple[Tensor, ...]:
        return (*self.queries, *self.keys, *self.alone)


def _multiply(view: Tensor, values: Floats) -> None:
    scale = torch.as_tensor(values, dtype=view.dtype, device=view.device)
    view.mul_(scale.reshape(*values.shape, *[1] * (view.ndim - values.ndim)))


def projections(module: nn.Module, heads: int, width: int | None = None) -> Projections | None:
    """Where the module makes queries and keys; None where that is not known, or they are not trained.

    ``nn.MultiheadAttention``; one linear layer for queries, keys and values, as ``qkv`` or ``c_attn``; a
    pair, as ``q_proj`` and ``k_proj``; or the up-projections of latent attention (DeepSeek, Kimi K2).

    Args:
        heads: of the queries; several may share a key.
        width: of a head, where it is known.
    """
    width = width or getattr(module, "head_dim", None)
    if isinstance(module, nn.MultiheadAttention):
        queries, keys = _multi_head(module)
    elif rows := _layer(module, _FUSED):
        width = width or len(rows[0]) // (3 * heads)
        queries = [t[: heads * width] for t in rows]
        keys = [t[heads * width :].chunk(2)[0] for t in rows]
    elif rows := _layer(module, _GROUPED):
        return _grouped(rows, heads, width or len(rows[0]) // (3 * heads))
    elif rows := _layer(module, _LATENT):
        return _latent(module, rows, heads)
    else:
        queries, keys = _pair(module, _PAIRS)
        if not queries:
            queries, both = _pair(module, _KEYS_AND_VALUES)
            keys = [t.chunk(2)[0] for t in both]
    queries, keys = [*queries, *_bias(module, "q_bias")], [*keys, *_bias(module, "k_bias")]
    return _split(queries, keys, heads, width) if queries and len(keys[0]) else None


def _pair(module: nn.Module, named: tuple[tuple[str, str], ...]) -> tuple[list[Tensor], list[Tensor]]:
    pairs = ((_layer(module, (one,)), _layer(module, (other,))) for one, other in named)
    return next(((one, other) for one, other in pairs if one and other), ([], []))


def _bias(module: nn.Module, name: str) -> list[Tensor]:
    """One that stands beside its layer (BEiT, EVA)."""
    bias = getattr(module, name, None)
    return [bias[:]] if isinstance(bias, nn.Parameter) and bias.ndim == 1 else []


def _split(queries: list[Tensor], keys: list[Tensor], heads: int, width: int | None) -> Projections | None:
    width = width or len(queries[0]) // heads
    shared = len(keys[0]) // max(width, 1)
    fit = all(len(t) == heads * width for t in queries) and all(len(t) == shared * width for t in keys)
    if not shared or heads % shared or not fit:
        return None
    return Projections(
        [t.unflatten(0, (shared, -1, width)) for t in queries],
        [t.unflatten(0, (shared, width)) for t in keys],
    )


def _grouped(rows: list[Tensor], heads: int, width: int) -> Projections | None:
    shared = (len(rows[0]) // max(width, 1) - heads) // 2
    if shared < 1 or heads % shared or len(rows[0]) != (heads + 2 * shared) * width:
        return None
    parts = [t.unflatten(0, (shared, -1, width)) for t in rows]
    return Projections([t[:, :-2] for t in parts], [t[:, -2] for t in parts])


def _latent(module: nn.Module, keys: list[Tensor], heads: int) -> Projections | None:
    """Of DeepSeek and Kimi K2: each head has queries and keys without a position, and rotary queries."""
    queries = _layer(module, ("q_b_proj", "q_proj"))
    plain, rotary = (getattr(module, f"qk_{part}_head_dim", 0) for part in ("nope", "rope"))
    if not queries or not plain or len(queries[0]) != heads * (plain + rotary) or len(keys[0]) % heads:
        return None
    parts = [t.unflatten(0, (heads, 1, plain + rotary)) for t in queries]
    of_keys = [t.unflatten(0, (heads, -1))[:, :plain] for t in keys]
    return Projections([t[:, :, :plain] for t in parts], of_keys, tuple(t[:, :, plain:] for t in parts))


def _multi_head(module: nn.MultiheadAttention) -> tuple[list[Tensor], list[Tensor]]:
    tensors = (
        module.in_proj_weight,
        module.q_proj_weight,
        module.k_proj_weight,
        module.in_proj_bias,
        module.bias_k,
    )
    if any(t is not None and not t.requires_grad for t in tensors):
        return [], []
    both: list[list[Tensor]] = [[], []]
    if module.in_proj_weight is None:
        both = [[module.q_proj_weight[:]], [module.k_proj_weight[:]]]
    for tensor in (module.in_proj_weight, module.in_proj_bias):
        if tensor is not None:
            for side, view in zip(both, tensor.chunk(3), strict=False):
                side.append(view)
    if module.bias_k is not None:
        both[1].append(module.bias_k.flatten())
    return both[0], both[1]


def _layer(module: nn.Module, names: tuple[str, ...]) -> list[Tensor]:
    """Weight and bias of the linear layer of that name, outputs first; none if they are not trained."""
    layer = next((found for name in names if (found := getattr(module, name, None)) is not None), None)
    weight, bias = getattr(layer, "weight", None), getattr(layer, "bias", None)
    tensors = [t for t in (weight, bias) if t is not None]
    if not isinstance(layer, nn.Module) or not isinstance(weight, Tensor) or weight.ndim != 2:
        return []
    if not all(isinstance(t, nn.Parameter) and t.requires_grad for t in tensors):  # computed, or frozen
        return []
    turned = type(layer).__name__ == "Conv1D"  # of transformers: it has the outputs last
    return [t.mT if turned and t.ndim == 2 else t[:] for t in tensors]
