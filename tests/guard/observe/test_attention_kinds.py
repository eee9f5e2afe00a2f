"""Attention of every kind shows the logits that it computes, and what cannot be read is named."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from guard.observe.attention_logits import AttentionLogits

SAMPLES, HEADS, LENGTH, WIDTH = 2, 4, 6, 8
ALLOWED = torch.ones(LENGTH, LENGTH).tril().bool()
PADDED = torch.zeros(SAMPLES, LENGTH).bool().index_fill(1, torch.tensor([5]), value=True)


def seen(call: Any) -> Any:
    with torch.no_grad(), AttentionLogits({}) as logits:
        call()
    assert logits.problem is None
    return logits.heads()[""]


def float_mask(allowed: Tensor) -> Tensor:
    return torch.zeros(allowed.shape).masked_fill(~allowed, torch.finfo(torch.float32).min)


@pytest.mark.parametrize(
    ("made", "called"),
    [
        ({}, {}),
        ({"bias": False}, {"attn_mask": ~ALLOWED, "is_causal": True}),
        ({}, {"key_padding_mask": PADDED}),
        ({"batch_first": True}, {"key_padding_mask": float_mask(~PADDED), "attn_mask": float_mask(ALLOWED)}),
        ({"kdim": 12, "vdim": 20}, {"attn_mask": (~ALLOWED).expand(SAMPLES * HEADS, -1, -1)}),
        ({"add_bias_kv": True, "add_zero_attn": True}, {"key_padding_mask": PADDED, "attn_mask": ~ALLOWED}),
    ],
)
@pytest.mark.parametrize("need_weights", [False, True])
def test_multi_head_attention_shows_what_its_softmax_is_given(
    made: Any, called: Any, *, need_weights: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    torch.manual_seed(0)
    layer = nn.MultiheadAttention(HEADS * WIDTH, HEADS, **made)
    sizes = (HEADS * WIDTH, made.get("kdim", HEADS * WIDTH), made.get("vdim", HEADS * WIDTH))
    shape = (SAMPLES, LENGTH) if made.get("batch_first") else (LENGTH, SAMPLES)
    query, key, value = (3 * torch.randn(*shape, size) for size in sizes)
    found = seen(lambda: layer(query, key, value, need_weights=need_weights, **called))
    given: list[Tensor] = []
    softmax = F.softmax
    with monkeypatch.context() as patch:
        patch.setattr(F, "softmax", lambda x, dim: (given.append(x), softmax(x, dim))[1])
        layer(query, key, value, need_weights=True, **called)
    expected = given[0].detach().unflatten(0, (SAMPLES, HEADS)).amax((0, 2, 3))
    assert found == pytest.approx(expected.numpy(), rel=1e-5)


@pytest.mark.parametrize("shape", [(), (SAMPLES,), (SAMPLES, HEADS), (3, SAMPLES, HEADS)])
@pytest.mark.parametrize("mask", [None, "bool", "finite"])
def test_a_call_of_any_shape(shape: tuple[int, ...], mask: str | None) -> None:
    torch.manual_seed(0)
    query, key = torch.randn(*shape, LENGTH, WIDTH), torch.randn(*shape, LENGTH, WIDTH)
    given = {None: None, "bool": ALLOWED, "finite": float_mask(ALLOWED)}[mask]
    found = seen(lambda: F.scaled_dot_product_attention(query, key, key, attn_mask=given))
    logits = query @ key.mT * WIDTH**-0.5
    logits = logits if mask is None else logits.masked_fill(~ALLOWED, -torch.inf)
    heads = logits.amax((-2, -1))
    expected = heads.flatten(0, -2).amax(0) if len(shape) > 1 else heads.amax().reshape(1)
    assert found == pytest.approx(expected.numpy(), rel=1e-5)


def test_keys_that_heads_share_by_number_or_by_broadcasting() -> None:
    torch.manual_seed(0)
    query, pair, one = (torch.randn(SAMPLES, heads, LENGTH, WIDTH) for heads in (HEADS, 2, 1))
    for key, more in ((pair, {"enable_gqa": True}), (one, {})):
        found = seen(lambda key=key, more=more: F.scaled_dot_product_attention(query, key, key, **more))
        logits = query @ key.repeat_interleave(HEADS // key.size(1), 1).mT * WIDTH**-0.5
        assert found == pytest.approx(logits.amax((0, 2, 3)).numpy(), rel=1e-5)


@pytest.mark.filterwarnings("ignore:.*nested tensors is in prototype:UserWarning")
def test_nested_samples_of_different_lengths() -> None:
    torch.manual_seed(0)
    samples = [torch.randn(length, HEADS * WIDTH) for length in (3, LENGTH)]
    nested = torch.nested.nested_tensor(samples, layout=torch.jagged)
    heads = nested.unflatten(-1, (HEADS, WIDTH)).transpose(1, 2)
    found = seen(lambda: F.scaled_dot_product_attention(heads, heads, heads))
    each = [s.unflatten(-1, (HEADS, WIDTH)).transpose(0, 1) for s in samples]
    expected = torch.stack([(s @ s.mT * WIDTH**-0.5).amax((1, 2)) for s in each]).amax(0)
    assert found == pytest.approx(expected.numpy(), rel=1e-5)


@pytest.mark.filterwarnings("ignore:.*flex_attention:UserWarning")
@pytest.mark.parametrize("kind", ["none", "causal", "samples", "heads"])
def test_flex_attention_with_shared_keys_and_block_masks(kind: str) -> None:
    from torch.nn.attention.flex_attention import create_block_mask, flex_attention

    torch.manual_seed(0)
    query, key, lengths = torch.randn(2, HEADS, 16, 16), torch.randn(2, 2, 16, 16), torch.tensor([9, 16])
    allowed: Any = {
        "causal": lambda b, h, q, k: q >= k,  # noqa: ARG005
        "samples": lambda b, h, q, k: k < lengths[b],  # noqa: ARG005
        "heads": lambda b, h, q, k: (q >= k) | (h > 1),  # noqa: ARG005
    }.get(kind)
    sizes = (2 if kind == "samples" else None, HEADS if kind == "heads" else None, 16, 16)
    mask = allowed and create_block_mask(allowed, *sizes, device="cpu")
    found = seen(lambda: flex_attention(query, key, key, block_mask=mask, enable_gqa=True, scale=0.5))
    logits = query @ key.repeat_interleave(2, 1).mT * 0.5
    if allowed:
        places = torch.meshgrid(*(torch.arange(size) for size in logits.shape), indexing="ij")
        logits = logits.masked_fill(~allowed(*places), -torch.inf)
    assert found == pytest.approx(logits.amax((0, 2, 3)).numpy(), rel=1e-5)


def test_attention_written_out_shows_what_its_softmax_is_given() -> None:
    torch.manual_seed(0)
    logits = 30 * torch.randn(SAMPLES, HEADS, LENGTH, LENGTH)
    for call in (
        lambda: F.softmax(logits, dim=-1),
        lambda: logits.softmax(3),
        lambda: nn.Softmax(-1)(logits),
    ):
        assert seen(call) == pytest.approx(logits.amax((0, 2, 3)).numpy())
    with AttentionLogits({}) as other:
        F.softmax(logits, dim=1)
        F.softmax(logits[0], dim=-1)
    assert other.heads() == {}


def test_under_autocast_the_product_is_not_rounded_again() -> None:
    torch.manual_seed(0)
    query = torch.randn(SAMPLES, HEADS, LENGTH, WIDTH).bfloat16()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = seen(lambda: F.scaled_dot_product_attention(query, query, query))
    expected = (query.float() @ query.float().mT * WIDTH**-0.5).amax((0, 2, 3))
    assert found == pytest.approx(expected.numpy(), rel=1e-6)


def test_a_compiled_model_is_read_uncompiled() -> None:
    torch.manual_seed(0)
    query = torch.randn(SAMPLES, HEADS, LENGTH, WIDTH)
    compiled = torch.compile(lambda x: F.scaled_dot_product_attention(x, x, x), backend="eager")
    before = compiled(query)
    expected = seen(lambda: F.scaled_dot_product_attention(query, query, query))
    assert seen(lambda: compiled(query)) == pytest.approx(expected)
    assert torch.equal(compiled(query), before)


def test_a_call_that_cannot_be_read_is_named_and_computed_all_the_same() -> None:
    class Odd(Tensor):
        """Attention of such tensors is the business of their class."""

        @classmethod
        def __torch_function__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            del types, kwargs
            if func is F.scaled_dot_product_attention:
                return "theirs"
            raise TypeError("no such operation")

    odd = torch.ones(1).as_subclass(Odd)
    with AttentionLogits({}) as logits:
        assert F.scaled_dot_product_attention(odd, odd, odd) == "theirs"
    assert logits.problem == "the model: no such operation"
