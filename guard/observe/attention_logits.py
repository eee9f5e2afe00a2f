"""The largest attention logit of each head, read while a model computes, and where its weights are."""

from __future__ import annotations

import inspect
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.modules import module as hooks
from torch.overrides import TorchFunctionMode

from guard.types import Floats

_ELEMENTS = 1 << 24
"""Logits that are held at a time."""
_FUSED = ("qkv", "c_attn")
_PAIRS = (("q_proj", "k_proj"), ("query", "key"), ("to_q", "to_k"), ("wq", "wk"))
_MULTI_HEAD = inspect.signature(F.multi_head_attention_forward)


class AttentionLogits(TorchFunctionMode):
    """While it is entered, sees each call of ``scaled_dot_product_attention`` and ``nn.MultiheadAttention``.

    Args:
        names: of the modules, by ``id``.
    """

    def __init__(self, names: Mapping[int, str]) -> None:
        super().__init__()
        self._names = names
        self._modules: list[nn.Module] = []
        self._largest: dict[str, Tensor] = {}
        self._hooks = ExitStack()

    def __enter__(self) -> Any:
        for handle in (
            hooks.register_module_forward_pre_hook(lambda module, _: self._modules.append(module)),
            hooks.register_module_forward_hook(self._left, always_call=True),
        ):
            self._hooks.callback(handle.remove)
        return super().__enter__()

    def __exit__(self, *error: Any) -> None:
        self._hooks.close()
        super().__exit__(*error)

    def __torch_function__(
        self, func: Any, types: Any, args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        if func is F.scaled_dot_product_attention:
            self._note(_of_call(*args, **kwargs))
        elif func is F.multi_head_attention_forward:
            self._note(_of_multi_head(_MULTI_HEAD.bind(*args, **kwargs).arguments))
        return func(*args, **kwargs)

    def heads(self) -> dict[str, Floats]:
        """The largest logit of each head, float64 [heads], by the name of its module."""
        return {name: heads.double().cpu().numpy() for name, heads in self._largest.items()}

    def _left(self, module: nn.Module, *_: Any) -> None:
        while self._modules and self._modules.pop() is not module:
            pass

    def _note(self, largest: Tensor) -> None:
        name = next((self._names[id(m)] for m in reversed(self._modules) if id(m) in self._names), "")
        known = self._largest.get(name)
        same = known is not None and known.shape == largest.shape
        self._largest[name] = torch.maximum(known, largest) if known is not None and same else largest


def _of_call(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attn_mask: Tensor | None = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    scale: float | None = None,
    enable_gqa: bool = False,
) -> Tensor:
    """Of queries and keys [..., heads, length, width]; the arguments are those of torch's function."""
    del value, dropout_p
    if query.ndim < 4:  # no heads
        query, key = query.flatten(0, -3)[:, None], key.flatten(0, -3)[:, None]
        attn_mask = None if attn_mask is None or attn_mask.ndim > 2 else attn_mask
    if enable_gqa:
        key = key.repeat_interleave(query.size(-3) // key.size(-3), -3)
    factor = query.size(-1) ** -0.5 if scale is None else scale
    bias = None if attn_mask is None else attn_mask.expand(*query.shape[:-1], key.size(-2)).flatten(0, -4)
    largest = query.new_full((query.size(-3),), -torch.inf, dtype=torch.float32)
    rows = max(1, _ELEMENTS // max(1, query.size(-3) * key.size(-2)))
    for i, (queries, keys) in enumerate(zip(query.flatten(0, -4), key.flatten(0, -4), strict=True)):
        for start in range(0, queries.size(-2), rows):
            part = slice(start, start + rows)
            logits = (queries[:, part].float() @ keys.float().mT) * factor
            if bias is not None:
                own = bias[i][:, part]
                left_out = ~own if own.dtype is torch.bool else own == -torch.inf
                logits = logits.masked_fill(left_out, -torch.inf)
            if is_causal:
                places = torch.arange(start, start + logits.size(-2), device=logits.device)[:, None]
                later = torch.arange(logits.size(-1), device=logits.device) > places
                logits = logits.masked_fill(later, -torch.inf)
            largest = torch.maximum(largest, logits.amax((-2, -1)))
    return largest


def _of_multi_head(call: Mapping[str, Any]) -> Tensor:
    """Of ``nn.MultiheadAttention``: queries and keys are [length, samples, width]."""
    query, key, heads = call["query"], call["key"], call["num_heads"]
    if call.get("use_separate_proj_weight"):
        weights = call["q_proj_weight"], call["k_proj_weight"]
    else:
        weights = call["in_proj_weight"].chunk(3)[:2]
    biases = (None, None) if call["in_proj_bias"] is None else call["in_proj_bias"].chunk(3)[:2]
    if query.ndim == 2:
        query, key = query[:, None], key[:, None]
    queries, keys = (
        F.linear(x, w, b).unflatten(-1, (heads, -1)).permute(1, 2, 0, 3)
        for x, w, b in zip((query, key), weights, biases, strict=True)
    )
    mask = call.get("attn_mask")
    if mask is not None and mask.dtype is torch.bool:
        mask = ~mask  # there True leaves out
    if mask is not None and mask.ndim == 3:
        mask = mask.unflatten(0, (-1, heads))
    return _of_call(queries, keys, keys, attn_mask=mask)


@dataclass(frozen=True, slots=True)
class Projections:
    """Views of what makes queries and keys, rows first: the weights, and the biases."""

    queries: list[Tensor]
    keys: list[Tensor]
    heads: int

    def rescale(self, factors: Floats) -> None:
        """Multiplies the logits of each head by its factor, [heads].

        A key head that several query heads share takes the square root of the least of theirs.
        """
        shared = self.heads // max(1, self.keys[0].size(0) // (self.queries[0].size(0) // self.heads))
        of_keys = np.sqrt(factors.reshape(-1, shared).min(1))
        of_queries = factors / np.repeat(of_keys, shared)
        for views, values in ((self.queries, of_queries), (self.keys, of_keys)):
            for view in views:
                rows = view.unflatten(0, (len(values), -1))
                scale = torch.as_tensor(values, dtype=view.dtype, device=view.device)
                rows.mul_(scale.view(-1, *[1] * (rows.ndim - 1)))


def projections(module: nn.Module, heads: int) -> Projections | None:
    """Where the module makes queries and keys; None where that is not known, or they are not trained.

    ``nn.MultiheadAttention``; a linear layer ``qkv`` or ``c_attn``, whose thirds are queries, keys and
    values, heads one after the other; or a pair of them: ``q_proj`` and ``k_proj``, ``query`` and ``key``,
    ``to_q`` and ``to_k``, ``wq`` and ``wk``.
    """
    found = _multi_head(module) if isinstance(module, nn.MultiheadAttention) else _linear(module)
    if found is None or any(not t._base.requires_grad for side in found for t in side if t._base is not None):
        return None
    queries, keys = found
    width, rest = divmod(queries[0].size(0), heads)
    if rest or not width or keys[0].size(0) % width or heads % (keys[0].size(0) // width):
        return None
    return Projections(queries, keys, heads)


def _multi_head(module: nn.MultiheadAttention) -> tuple[list[Tensor], list[Tensor]]:
    both: list[list[Tensor]] = [[], []]
    if module.in_proj_weight is not None:
        tensors = [module.in_proj_weight, module.in_proj_bias]
    else:
        tensors = [module.in_proj_bias]
        both = [[module.q_proj_weight[:]], [module.k_proj_weight[:]]]
    for tensor in tensors:
        if tensor is not None:
            for side, view in zip(both, tensor.chunk(3), strict=False):
                side.append(view)
    return both[0], both[1]


def _linear(module: nn.Module) -> tuple[list[Tensor], list[Tensor]] | None:
    fused = next((layer for name in _FUSED if (layer := getattr(module, name, None)) is not None), None)
    if fused is not None:
        views = [view.chunk(3)[:2] for view in _rows(fused)]
        return ([one for one, _ in views], [other for _, other in views]) if views else None
    for names in _PAIRS:
        layers = [getattr(module, name, None) for name in names]
        if all(isinstance(layer, nn.Module) for layer in layers):
            queries, keys = (_rows(layer) for layer in layers if layer is not None)
            return (queries, keys) if queries and keys else None
    return None


def _rows(layer: nn.Module) -> list[Tensor]:
    """Weight and bias of a linear layer, outputs first; Conv1D of transformers has them last."""
    weight, bias = getattr(layer, "weight", None), getattr(layer, "bias", None)
    if not isinstance(weight, Tensor) or weight.ndim != 2:
        return []
    view = weight[:] if isinstance(layer, nn.Linear) else weight.mT
    return [view] if not isinstance(bias, Tensor) else [view, bias[:]]
