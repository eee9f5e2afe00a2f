"""The largest logit of each head is read as attention computes it, and rescaled to what is asked for."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from guard.observe.attention_logits import AttentionLogits
from guard.observe.projections import projections

HEADS, WIDTH, LENGTH = 4, 32, 6


class Fused(nn.Module):
    """As in timm and GPT-2: one layer makes all three."""

    def __init__(self) -> None:
        super().__init__()
        self.qkv = nn.Linear(WIDTH, 3 * WIDTH)

    def forward(self, x: Tensor) -> Tensor:
        query, key, value = self.qkv(x).unflatten(-1, (3, HEADS, -1)).permute(2, 0, 3, 1, 4)
        return F.scaled_dot_product_attention(query, key, value, is_causal=True)


class Shared(nn.Module):
    """As in Llama: two query heads share a key head."""

    def __init__(self) -> None:
        super().__init__()
        self.q_proj, self.k_proj = (
            nn.Linear(WIDTH, WIDTH, bias=False),
            nn.Linear(WIDTH, WIDTH // 2, bias=False),
        )

    def forward(self, x: Tensor) -> Tensor:
        query = self.q_proj(x).unflatten(-1, (HEADS, -1)).transpose(1, 2)
        key = self.k_proj(x).unflatten(-1, (HEADS // 2, -1)).transpose(1, 2)
        return F.scaled_dot_product_attention(query, key, key, enable_gqa=True)


class Beside(nn.Module):
    """One layer makes keys and values (PVT), and the bias of queries stands beside its layer (BEiT)."""

    def __init__(self) -> None:
        super().__init__()
        self.q, self.kv = nn.Linear(WIDTH, WIDTH, bias=False), nn.Linear(WIDTH, 2 * WIDTH)
        self.q_bias = nn.Parameter(torch.randn(WIDTH))

    def forward(self, x: Tensor) -> Tensor:
        query = (self.q(x) + self.q_bias).unflatten(-1, (HEADS, -1)).transpose(1, 2)
        key, value = self.kv(x).unflatten(-1, (2, HEADS, -1)).permute(2, 0, 3, 1, 4)
        return F.scaled_dot_product_attention(query, key, value)


class MultiHead(nn.Module):
    """Torch's own; with ``apart`` the keys have another width, and weights of their own."""

    def __init__(self, *, apart: bool = False) -> None:
        super().__init__()
        self.inner = nn.MultiheadAttention(WIDTH, HEADS, batch_first=True, kdim=24 if apart else None)
        self.apart = apart

    def forward(self, x: Tensor) -> Tensor:
        return self.inner(x, x[..., :24] if self.apart else x, x)[0]


def seen(model: nn.Module, x: Tensor) -> dict[str, Any]:
    names = {id(module): name for name, module in model.named_modules()}
    with torch.no_grad(), AttentionLogits(names) as logits:
        model(x)
    return logits.heads()


@pytest.mark.parametrize("mask", ["none", "causal", "bool", "added"])
@pytest.mark.parametrize("scale", [None, 0.7])
def test_the_largest_logit_is_that_of_the_whole_matrix(mask: str, scale: float | None) -> None:
    torch.manual_seed(0)
    query, key = torch.randn(2, 3, HEADS, LENGTH, 8), torch.randn(2, 3, HEADS, LENGTH, 8)
    allowed = torch.rand(LENGTH, LENGTH) < 0.5
    allowed[:, 0] = True
    given = {
        "none": {},
        "causal": {"is_causal": True},
        "bool": {"attn_mask": allowed},
        "added": {"attn_mask": torch.zeros(LENGTH, LENGTH).masked_fill(~allowed, -torch.inf)},
    }[mask]
    with AttentionLogits({}) as logits:
        F.scaled_dot_product_attention(query, key, key, scale=scale, **given)  # type: ignore[arg-type]
    whole = query @ key.mT * (8**-0.5 if scale is None else scale)
    used = {"none": torch.ones_like(allowed), "causal": torch.ones_like(allowed).tril()}.get(mask, allowed)
    expected = whole.masked_fill(~used, -torch.inf).amax((0, 1, -1, -2))
    assert logits.heads()[""] == pytest.approx(expected.numpy(), rel=1e-5)


def test_multi_head_attention_shows_the_same_logits_as_its_weights() -> None:
    torch.manual_seed(0)
    model, x = MultiHead(), torch.randn(3, LENGTH, WIDTH)
    left_out = torch.ones(LENGTH, LENGTH).triu(1).bool()
    names = {id(module): name for name, module in model.named_modules()}
    with torch.no_grad(), AttentionLogits(names) as logits:
        model.inner(x, x, x, attn_mask=left_out)
    weight, bias = model.inner.in_proj_weight.detach(), model.inner.in_proj_bias.detach()
    query, key = (
        F.linear(x, weight[i : i + WIDTH], bias[i : i + WIDTH]).unflatten(-1, (HEADS, -1)).transpose(1, 2)
        for i in (0, WIDTH)
    )
    expected = (query @ key.mT * 8**-0.5).masked_fill(left_out, -torch.inf).amax((0, 2, 3))
    assert logits.heads()["inner"] == pytest.approx(expected.numpy(), rel=1e-5)


@pytest.mark.parametrize("make", [Fused, Shared, Beside, MultiHead, lambda: MultiHead(apart=True)])
def test_rescaled_weights_give_the_logits_that_were_asked_for(make: Any) -> None:
    torch.manual_seed(0)
    model, x = make(), 5 * torch.randn(3, LENGTH, WIDTH)
    ((name, before),) = seen(model, x).items()
    weights = projections(model.get_submodule(name), HEADS)
    assert weights is not None
    limit = float(np.median(before))
    with torch.no_grad():
        weights.rescale(np.minimum(1.0, limit / before))
    assert seen(model, x)[name] == pytest.approx(np.minimum(before, limit), rel=1e-4)


def test_weights_that_are_not_trained_or_not_known_are_left_alone() -> None:
    model = Fused()
    assert projections(model, 5) is None
    assert projections(nn.Linear(3, 3), 1) is None
    model.requires_grad_(False)
    assert projections(model, HEADS) is None
