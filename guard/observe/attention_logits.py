"""The largest attention logit of each head, read while a model computes.

A logit is the product of a query and a key times the scale, of the pairs that the masks leave. A bias that
depends on the position (T5, ALiBi) counts only where attention is written out: there the logits are what
``softmax`` is given.
"""

from __future__ import annotations

import inspect
import warnings
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.modules import module as hooks
from torch.overrides import TorchFunctionMode

from guard.observe.projections import projections
from guard.types import Floats

_ELEMENTS = 1 << 24
"""Logits that are held at a time."""
_MASKED = -1e4
"""A bias from here down is a mask, whatever stands for minus infinity in it."""
_MULTI_HEAD = inspect.signature(F.multi_head_attention_forward)
_SOFTMAX = (F.softmax, torch.softmax, torch.Tensor.softmax)


class Heads(NamedTuple):
    """Of one layer: the largest logit of each head, [heads], and the width of a head where it is known."""

    largest: Tensor
    width: int | None = None


class AttentionLogits(TorchFunctionMode):
    """While it is entered, sees attention: ``scaled_dot_product_attention``, ``nn.MultiheadAttention``,
    ``flex_attention``, and a softmax over the last axis of [samples, heads, queries, keys].

    What is compiled runs uncompiled meanwhile.

    Args:
        names: of the modules, by ``id``.
    """

    def __init__(self, names: Mapping[int, str]) -> None:
        super().__init__()
        self._names = names
        self._modules: list[nn.Module] = []
        self._found: dict[str, Heads] = {}
        self._hooks = ExitStack()
        self.problem: str | None = None
        """The first call that could not be read, and why."""

    def __enter__(self) -> Any:
        self._hooks.enter_context(warnings.catch_warnings())
        warnings.filterwarnings(
            "ignore", message=".*global hooks"
        )  # of torch.compile, which is off meanwhile
        for handle in (
            hooks.register_module_forward_pre_hook(lambda module, _: self._modules.append(module)),
            hooks.register_module_forward_hook(self._left, always_call=True),
        ):
            self._hooks.callback(handle.remove)
        self._hooks.enter_context(torch.compiler.set_stance("force_eager"))
        return super().__enter__()

    def __exit__(self, *error: Any) -> None:
        self._hooks.close()
        super().__exit__(*error)

    def __torch_function__(
        self, func: Any, types: Any, args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        if (read := self._reader(func)) is not None:
            try:
                self._note(read(*args, **kwargs))
            except Exception as error:  # noqa: BLE001 - whatever it is: the model goes on
                self.problem = self.problem or f"{self._name() or 'the model'}: {error}"
        return func(*args, **kwargs)

    def heads(self) -> dict[str, Floats]:
        """The largest logit of each head, float64 [heads], by the name of its module."""
        return {name: found.largest.double().cpu().numpy() for name, found in self._found.items()}

    def width(self, name: str) -> int | None:
        """Of the heads of a module, where it is known."""
        return self._found[name].width

    def _reader(self, func: Any) -> Any:
        if func is F.scaled_dot_product_attention:
            return _of_call
        if func is F.multi_head_attention_forward:
            return _of_multi_head
        if func in _SOFTMAX:
            return self._of_softmax
        return _of_flex if getattr(func, "__name__", "") == "flex_attention" else None

    def _of_softmax(self, *args: Any, **kwargs: Any) -> Heads | None:
        """Of attention written out; three axes are one head where the module makes queries and keys."""
        call = dict(zip(("input", "dim"), args, strict=False)) | kwargs
        logits, dim = call["input"], call.get("dim")
        if logits.ndim not in (3, 4) or dim not in (-1, logits.ndim - 1):
            return None
        if logits.ndim == 4:
            return Heads(logits.float().amax((0, 2, 3)))
        known = self._modules and projections(self._modules[-1], 1) is not None
        return Heads(logits.float().amax().reshape(1)) if known else None

    def _left(self, module: nn.Module, *_: Any) -> None:
        while self._modules and self._modules.pop() is not module:
            pass

    def _name(self) -> str:
        return next((self._names[id(m)] for m in reversed(self._modules) if id(m) in self._names), "")

    def _note(self, heads: Heads | None) -> None:
        if heads is None:
            return
        known = self._found.get(name := self._name())
        same = known is not None and known.largest.shape == heads.largest.shape
        largest = torch.maximum(known.largest, heads.largest) if known is not None and same else heads.largest
        self._found[name] = Heads(largest, heads.width)


def _of_call(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attn_mask: Tensor | None = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    scale: float | None = None,
    enable_gqa: bool = False,
) -> Heads:
    """Of queries and keys [..., heads, length, width]; the arguments are those of torch's function.

    With fewer than four axes a layer counts as one head.
    """
    del value, dropout_p
    if query.is_nested:
        each = [_of_call(q, k, k, None, 0.0, is_causal, scale, enable_gqa) for q, k in _samples(query, key)]
        return Heads(torch.stack([one.largest for one in each]).amax(0), each[0].width)
    width = query.size(-1) if query.ndim > 3 else None
    if query.ndim < 4:
        query, key = query[..., None, :, :], key[..., None, :, :]
        attn_mask = attn_mask[:, None] if attn_mask is not None and attn_mask.ndim == 3 else attn_mask
    if enable_gqa:
        key = key.repeat_interleave(query.size(-3) // key.size(-3), -3)
    places = torch.broadcast_shapes(query.shape[:-2], key.shape[:-2])
    shape = (*places, query.size(-2), key.size(-2))
    query, key = (t.expand(*places, -1, -1).reshape(-1, *places[-1:], *t.shape[-2:]) for t in (query, key))
    allowed = None if attn_mask is None else _allowed(attn_mask).expand(shape).reshape(-1, *shape[-3:])
    factor = query.size(-1) ** -0.5 if scale is None else scale
    largest = query.new_full(places[-1:], -torch.inf, dtype=torch.float32)
    rows = max(1, _ELEMENTS // max(1, shape[-3] * shape[-1]))
    with torch.autocast(query.device.type, enabled=False):
        for i, (queries, keys) in enumerate(zip(query, key, strict=True)):
            for start in range(0, shape[-2], rows):
                logits = (queries[:, start : start + rows].float() @ keys.float().mT) * factor
                if allowed is not None:
                    logits = logits.masked_fill(~allowed[i][:, start : start + rows], -torch.inf)
                if is_causal:
                    logits = logits.masked_fill(_later(logits, start), -torch.inf)
                largest = torch.maximum(largest, logits.amax((-2, -1)))
    return Heads(largest, width)


def _samples(query: Tensor, key: Tensor) -> list[tuple[Tensor, Tensor]]:
    """Of nested tensors: each sample as a batch of one."""
    return [(q[None], k[None]) for q, k in zip(query.unbind(), key.unbind(), strict=True)]


def _allowed(mask: Tensor) -> Tensor:
    return mask if mask.dtype is torch.bool else mask > _MASKED


def _later(logits: Tensor, start: int) -> Tensor:
    places = torch.arange(start, start + logits.size(-2), device=logits.device)[:, None]
    return torch.arange(logits.size(-1), device=logits.device) > places


def _of_flex(
    query: Tensor, key: Tensor, value: Tensor, _: Any, block_mask: Any, scale: float, *__: Any
) -> Heads:
    """The arguments are those of torch's operator; what a ``score_mod`` adds does not count."""
    from torch.nn.attention.flex_attention import create_mask

    blocks = next(part for part in block_mask if isinstance(part, Tensor))
    samples, heads = blocks.shape[:2]  # 1 where all are alike
    mask = create_mask(block_mask[-1], samples, heads, query.size(-2), key.size(-2), str(query.device))
    return _of_call(query, key, value, mask, scale=scale, enable_gqa=key.size(-3) != query.size(-3))


def _of_multi_head(*args: Any, **kwargs: Any) -> Heads:
    """Of ``nn.MultiheadAttention``: queries and keys are [length, samples, width]."""
    call = _MULTI_HEAD.bind(*args, **kwargs).arguments
    query, key, heads = call["query"], call["key"], call["num_heads"]
    if call.get("use_separate_proj_weight"):
        weights = call["q_proj_weight"], call["k_proj_weight"]
    else:
        weights = call["in_proj_weight"].chunk(3)[:2]
    biases = (None, None) if call["in_proj_bias"] is None else call["in_proj_bias"].chunk(3)[:2]
    if query.ndim == 2:
        query, key = query[:, None], key[:, None]
    queries, keys = (F.linear(x, w, b) for x, w, b in zip((query, key), weights, biases, strict=True))
    if (more := call.get("bias_k")) is not None:
        keys = torch.cat([keys, more.to(keys.dtype).expand(1, keys.size(1), -1)])
    if call.get("add_zero_attn"):
        keys = torch.cat([keys, keys.new_zeros(1, *keys.shape[1:])])
    queries, keys = (t.unflatten(-1, (heads, -1)).permute(1, 2, 0, 3) for t in (queries, keys))
    return _of_call(queries, keys, keys, _of_masks(call, queries, keys))


def _of_masks(call: Mapping[str, Any], queries: Tensor, keys: Tensor) -> Tensor:
    """What ``attn_mask`` and ``key_padding_mask`` leave, [samples or 1, heads or 1, queries, keys]."""
    allowed = torch.ones(1, 1, queries.size(-2), keys.size(-2), dtype=torch.bool, device=keys.device)
    attention, padding = call.get("attn_mask"), call.get("key_padding_mask")
    if attention is not None:
        attention = attention.unflatten(0, (len(queries), -1)) if attention.ndim == 3 else attention
        allowed = allowed & _padded(attention, keys)
    if padding is not None:
        allowed = allowed & _padded(padding.reshape(len(queries), 1, 1, -1), keys)
    return allowed


def _padded(mask: Tensor, keys: Tensor) -> Tensor:
    """As ``_allowed``, of a mask whose True leaves out; keys that the layer adds are never left out."""
    allowed = ~mask if mask.dtype is torch.bool else _allowed(mask)
    return F.pad(allowed, (0, keys.size(-2) - mask.size(-1)), value=True)
