"""Attention logits are watched without a trace, and held at the limit by rescaled queries and keys."""

from __future__ import annotations

import copy
import json
import pickle
from pathlib import Path
from typing import Any

import pytest
import torch
from pydantic import ValidationError
from torch import Tensor, nn
from torch.nn import functional as F

from guard import GradientGuard, GuardConfig, StepReport
from tests.guard.ranks import on_ranks

TAU = 20.0
ATTENTION = {"action": "qk_clip", "every": 5, "tau": TAU}


class Reader(nn.Module):
    """Attention over eight tokens, with dropout for random numbers; QK-norm undoes a scale."""

    def __init__(self, *, normed: bool = False) -> None:
        super().__init__()
        self.qkv, self.out = nn.Linear(16, 48, bias=False), nn.Linear(16, 4)
        self.norm: nn.Module = nn.RMSNorm(8) if normed else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        query, key, value = self.qkv(F.dropout(x, 0.1)).unflatten(-1, (3, 2, 8)).permute(2, 0, 3, 1, 4)
        mixed = F.scaled_dot_product_attention(self.norm(query), self.norm(key), value)
        return self.out(mixed.transpose(1, 2).flatten(2).mean(1))


def train(
    attention: Any,
    *,
    steps: int = 21,
    loud: float = 1.0,
    normed: bool = False,
    closure: bool = True,
    casts: bool = False,
    **more: Any,
) -> tuple[Reader, list[StepReport], GradientGuard]:
    torch.manual_seed(0)
    model = Reader(normed=normed)
    with torch.no_grad():
        model.qkv.weight[:32] *= loud
        if isinstance(model.norm, nn.RMSNorm):
            model.norm.weight.fill_(loud)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4)
    guard = GradientGuard(model, optimizer, {"attention": attention}, **more)
    reports = []
    for _ in range(steps):
        x, y = torch.randn(8, 8, 16), torch.randint(4, (8,))
        optimizer.zero_grad()
        again = lambda x=x, y=y: F.cross_entropy(model(x), y)  # noqa: E731
        with torch.autocast("cpu", torch.bfloat16, enabled=casts):
            guard.backward(again())
            reports.append(guard.step(again if closure else None))
    return model, reports, guard


def test_watching_leaves_no_trace() -> None:
    plain, _, _ = train("off")
    watched, reports, _ = train({"action": "watch", "every": 5}, loud=1.0)
    measured = [i for i, report in enumerate(reports) if report.attention_logit is not None]
    assert measured == [0, 5, 10, 15, 20]
    for one, other in zip(plain.parameters(), watched.parameters(), strict=True):
        assert torch.equal(one, other)


def test_logits_above_the_limit_are_brought_back_to_it_counted_and_journaled(tmp_path: Path) -> None:
    _, reports, guard = train(ATTENTION, loud=12.0, journal=tmp_path / "incidents.jsonl")
    first, *later = [r.attention_logit for r in reports if r.attention_logit is not None]
    assert first > 2 * TAU
    assert all(logit < 2 * TAU for logit in later)
    assert later[-1] < 1.3 * TAU
    assert guard.totals.qk_clips >= 1
    rows = [json.loads(line) for line in (tmp_path / "incidents.jsonl").read_text().splitlines()]
    assert rows[0]["type"] == "change"
    assert "attention logits above 20" in rows[0]["reason"]
    assert all(report.verdict.kind == "ok" for report in reports)


def test_rescaled_weights_are_no_movement_that_the_guard_takes_for_damage() -> None:
    torch.manual_seed(0)
    model = Reader()
    with torch.no_grad():
        model.qkv.weight[:32] *= 12.0
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4)
    reports: list[StepReport] = []
    saved: dict[str, Any] | None = None
    for attention in ("off", ATTENTION):
        guard = GradientGuard(model, optimizer, {"update_norm": "always", "attention": attention})
        if saved is not None:
            guard.load_state_dict(saved)
        for _ in range(40):
            x, y = torch.randn(8, 8, 16), torch.randint(4, (8,))
            optimizer.zero_grad()
            guard.backward(F.cross_entropy(model(x), y))
            reports.append(guard.step())
        saved = guard.state_dict()
    assert guard.totals.qk_clips >= 1
    assert all(report.verdict.kind == "ok" for report in reports)
    norms = [report.update_norm for report in reports if report.update_norm is not None]
    assert max(norms[-39:]) < 2 * max(norms[10:39])


@pytest.mark.parametrize("rate", [0.1, 100.0])
def test_weights_have_an_effect_also_where_each_step_raises_the_logits(rate: float, caplog: Any) -> None:
    torch.manual_seed(0)
    model, x = Reader().eval(), torch.randn(8, 8, 16)
    optimizer = torch.optim.SGD(model.parameters(), lr=rate)

    def loss() -> Tensor:
        torch.manual_seed(1)
        return model(x).sum() * 0 - model.qkv.weight.square().mean()

    def stepped(attention: Any) -> StepReport:
        guard = GradientGuard(model, optimizer, {"attention": {"every": 1, **attention}})
        optimizer.zero_grad()
        guard.backward(loss())
        return guard.step(loss)

    before = stepped({"action": "watch"}).attention_logit
    assert before is not None
    now = stepped({"action": "qk_clip", "tau": before}).attention_logit
    assert now is not None
    assert now > before * (1.0001 if rate < 1 else 1.5)
    assert stepped({"action": "watch"}).attention_logit == pytest.approx(now, rel=1e-3 * min(rate, 1.0))
    assert not caplog.records


def test_queries_that_are_normalized_keep_their_weights_to_the_bit(caplog: pytest.LogCaptureFixture) -> None:
    plain, _, _ = train("off", steps=41, loud=12.0, normed=True)
    model, reports, guard = train(ATTENTION, steps=41, loud=12.0, normed=True)
    assert max(report.attention_logit or 0.0 for report in reports) > TAU
    assert guard.totals.qk_clips == 0
    assert sum("rescaled weights would lower no logit" in r.message for r in caplog.records) == 1
    for one, other in zip(plain.parameters(), model.parameters(), strict=True):
        assert torch.equal(one, other)


@pytest.mark.parametrize("casts", [False, True])
def test_without_a_closure_the_last_forward_shows_the_same(*, casts: bool) -> None:
    plain, _, _ = train("off", steps=11, casts=casts)
    (_, given, _), (model, found, _) = (
        train({"action": "watch", "every": 5}, steps=11, closure=closure, casts=casts)
        for closure in (True, False)
    )
    assert [report.attention_logit for report in found] == [report.attention_logit for report in given]
    assert found[10].attention_logit is not None
    for one, other in zip(plain.parameters(), model.parameters(), strict=True):
        assert torch.equal(one, other)
    copied = pickle.loads(pickle.dumps(copy.deepcopy(model)))
    copied(torch.randn(2, 8, 16)).sum().backward()


class Compiled(Reader):
    """Its attention is compiled."""

    def __init__(self) -> None:
        super().__init__()
        self.forward = torch.compile(super().forward, backend="eager")  # type: ignore[method-assign]


def steps(model: nn.Module, called: nn.Module, *, closure: bool = False) -> list[StepReport]:
    """Of ``called``, evaluated in between, under a guard of ``model`` that measures each attempt."""
    torch.manual_seed(0)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    guard = GradientGuard(model, optimizer, {"attention": {"action": "watch", "every": 1}})
    reports = []
    for _ in range(3):
        x = torch.randn(4, 8, 16)
        loss = lambda x=x: called(x).square().mean()  # noqa: E731
        optimizer.zero_grad()
        guard.backward(loss())
        with torch.no_grad():
            called.eval()(10 * x)
        called.train()
        reports.append(guard.step(loss if closure else None))
    return reports


@pytest.mark.parametrize("closure", [False, True])
@pytest.mark.parametrize("how", ["module", "in place", "function"])
def test_compiled_models_are_watched(how: str, *, closure: bool) -> None:
    torch.manual_seed(0)
    plain = Reader()
    model: nn.Module = Compiled() if how == "function" else Reader()
    model.load_state_dict(plain.state_dict())
    if how == "module":
        model = torch.compile(model, backend="eager")  # type: ignore[assignment]
    elif how == "in place":
        model.compile(backend="eager")
    for one, other in zip(steps(plain, plain), steps(model, model, closure=closure), strict=True):
        assert other.applied
        assert other.attention_logit == (None if how == "in place" and not closure else one.attention_logit)


class Outer(nn.Module):
    """As a module of Lightning: the loop calls what is inside."""

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner


def test_a_loop_that_calls_the_child_of_the_model_is_watched() -> None:
    torch.manual_seed(0)
    inner = Reader()
    model = Outer(copy.deepcopy(inner))
    expected = [report.attention_logit for report in steps(inner, inner)]
    assert [report.attention_logit for report in steps(model, model.inner)] == expected
    assert None not in expected


def test_where_nothing_can_be_watched_one_line_says_why(caplog: pytest.LogCaptureFixture) -> None:
    inner = Reader()
    assert all(report.attention_logit is None for report in steps(Outer(Outer(inner)), inner))
    layers = nn.Sequential(nn.Linear(16, 16), nn.ReLU())
    assert all(report.attention_logit is None for report in steps(layers, layers))
    assert [r.message for r in caplog.records if "attention" in r.message] == [
        "attention logits cannot be watched: "
        "guard.step() gets no closure, and the model that the guard has was not called",
        "attention logits cannot be watched: the model calls no attention that is known, "
        "or calls it in a kernel of its own (flash-attn, xformers)",
    ]


def test_the_action_may_be_given_alone_and_a_deferred_guard_refuses_it() -> None:
    assert GuardConfig.model_validate({"attention": "qk_clip"}).attention.tau == 100.0
    with pytest.raises(ValidationError, match="attention computes the batch again"):
        GuardConfig.model_validate({"attention": "watch", "mode": "deferred"})


def rescaled_weights(rank: int, _: int, __: Path) -> list[float]:
    torch.manual_seed(0)
    model = nn.parallel.DistributedDataParallel(Reader())
    with torch.no_grad():
        model.module.qkv.weight[:32] *= 12.0
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4)
    guard = GradientGuard(model, optimizer, {"attention": ATTENTION})
    torch.manual_seed(rank)
    for attempt in range(7):
        x, y = torch.randn(8, 8, 16), torch.randint(4, (8,))
        optimizer.zero_grad()
        guard.backward(F.cross_entropy(model(x), y))
        again = lambda x=x, y=y: F.cross_entropy(model(x), y)  # noqa: E731
        report = guard.step(again if attempt == 0 else None)
        assert guard.totals.qk_clips >= 1
        assert (report.attention_logit is not None) == (attempt % 5 == 0)
    return model.module.qkv.weight.flatten().tolist()


def test_ranks_rescale_alike(tmp_path: Path) -> None:
    one, other = on_ranks(2, rescaled_weights, tmp_path)
    assert one == other
