"""Sparse gradients, complex parameters and gradients with a graph are used as others are."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from guard import GradientGuard, GuardConfig, UnsupportedGradient
from guard.observe.observer import Observer
from tests.guard.loops import differences

WORDS = 12
CLIPS: dict[str, dict[str, Any]] = {
    "none": {"max_norm": 1e6},
    "norm": {"max_norm": 0.1},
    "norm 1": {"max_norm": 0.3, "norm_type": 1.0},
    "value": {"max_value": 0.01},
    "group": {"kind": "group", "max_norm": 0.1},
    "adagc": {"kind": "adagc", "warmup_steps": 2, "lambda_abs": 0.1},
}


def sentences(step: int) -> Tensor:
    """Each word occurs more than once, so that the sparse gradient stores indices twice."""
    generator = torch.Generator().manual_seed(step)
    return torch.randint(0, WORDS // 2, (6, 4), generator=generator)


def words(*, sparse: bool) -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Embedding(WORDS, 5, sparse=sparse), nn.Flatten(), nn.Linear(20, 2))


def train_words(*, sparse: bool, clip: dict[str, Any], steps: int = 6) -> tuple[list[Any], nn.Module]:
    model = words(sparse=sparse)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    guard = GradientGuard(model, optimizer, GuardConfig.model_validate({"clip": clip}))
    reports = []
    for step in range(steps):
        optimizer.zero_grad()
        guard.backward(model(sentences(step)).square().mean())
        reports.append(guard.step())
    return reports, model


@pytest.mark.parametrize("kind", CLIPS)
def test_a_sparse_gradient_trains_as_its_dense_twin(kind: str) -> None:
    sparse, model = train_words(sparse=True, clip=CLIPS[kind])
    dense, twin = train_words(sparse=False, clip=CLIPS[kind])
    assert [r.action for r in sparse] == [r.action for r in dense]
    assert ("clipped" in [r.action for r in dense]) == (kind != "none")
    assert [r.grad_norm for r in sparse] == pytest.approx([r.grad_norm for r in dense], rel=1e-5)
    assert [r.clip_coef for r in sparse] == pytest.approx([r.clip_coef for r in dense], rel=1e-5)
    torch.testing.assert_close(model.state_dict(), twin.state_dict(), rtol=1e-4, atol=1e-6)


def test_a_step_that_clips_nothing_uses_the_sparse_gradient_of_the_loop_to_the_bit() -> None:
    _, model = train_words(sparse=True, clip={"kind": "off"}, steps=40)
    plain = words(sparse=True)
    optimizer = torch.optim.SGD(plain.parameters(), lr=0.1)
    for step in range(40):
        optimizer.zero_grad()
        plain(sentences(step)).square().mean().backward()
        optimizer.step()
    assert not differences(model.state_dict(), plain.state_dict())


def test_a_nan_in_a_sparse_gradient_skips_the_step_exactly() -> None:
    model = words(sparse=True)
    embedding, linear = list(model[0].parameters()), list(model[2].parameters())  # type: ignore[index]
    optimizer = torch.optim.SparseAdam(embedding, lr=0.1)
    guard = GradientGuard(model[0], optimizer)  # type: ignore[index]
    for step in range(4):
        optimizer.zero_grad()
        guard.backward(model(sentences(step)).square().mean() * (math.nan if step == 3 else 1.0))
        if step == 3:
            before = {k: v.clone() for k, v in optimizer.state[embedding[0]].items() if isinstance(v, Tensor)}
            weights = embedding[0].detach().clone()
        report = guard.step()
    after = {k: v for k, v in optimizer.state[embedding[0]].items() if isinstance(v, Tensor)}
    assert report.action == "skipped"
    assert not differences([weights, before], [embedding[0].detach(), after])
    assert len(linear) == 2


def test_a_sparse_gradient_without_entries_has_norm_zero() -> None:
    parameter = nn.Parameter(torch.ones(3, 2))
    parameter.grad = torch.sparse_coo_tensor(
        torch.zeros(1, 0), torch.zeros(0, 2), (3, 2), check_invariants=True
    )
    assert Observer({"w": parameter}).observe().grad_norm == 0.0


def test_unit_wise_clipping_of_a_sparse_gradient_is_refused_with_what_to_use() -> None:
    with pytest.raises(UnsupportedGradient, match="parameter 0 has a sparse gradient: set sparse=False"):
        train_words(sparse=True, clip={"kind": "agc"})


class Rotation(nn.Module):
    """A complex weight, or the same weight as two real ones."""

    def __init__(self, *, as_real: bool) -> None:
        super().__init__()
        torch.manual_seed(0)
        weight = torch.randn(4, 3, dtype=torch.complex64)
        self.weight = nn.Parameter(torch.view_as_real(weight).clone() if as_real else weight)

    def forward(self, inputs: Tensor) -> Tensor:
        weight = self.weight if self.weight.is_complex() else torch.view_as_complex(self.weight)
        return (inputs.to(torch.complex64) @ weight.t()).abs()


def train_rotation(*, as_real: bool, config: dict[str, Any], bad: Callable[[int], bool]) -> Any:
    model = Rotation(as_real=as_real)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9)
    guard = GradientGuard(model, optimizer, GuardConfig.model_validate(config))
    generator = torch.Generator().manual_seed(1)
    reports = []
    for attempt in range(14):
        optimizer.zero_grad()
        loss = (model(torch.randn(8, 3, generator=generator)) - 1).square().mean()
        guard.backward(loss * (math.nan if bad(attempt) else 1.0))
        reports.append(guard.step())
    weight = model.weight.detach()
    return reports, torch.view_as_real(weight) if weight.is_complex() else weight


@pytest.mark.parametrize("clip", [{"max_norm": 0.1}, {"kind": "adagc", "warmup_steps": 2}, {"kind": "off"}])
def test_a_complex_parameter_trains_as_its_two_real_parts(clip: dict[str, Any]) -> None:
    recovery = {"anchor_l2": 1.0, "l1": 0.0, "cooldown_steps": 4}
    config = {"clip": clip, "recovery": recovery, "snapshot": {"every_steps": 2}}
    bad = (7, 8, 9).__contains__
    reports, weight = train_rotation(as_real=False, config=config, bad=bad)
    expected, twin = train_rotation(as_real=True, config=config, bad=bad)
    assert [r.action for r in reports] == [r.action for r in expected]
    assert {"skipped", "rolled_back"} <= {r.action for r in reports}
    norms = [report.grad_norm for report in expected]
    norms = [report.grad_norm for report in expected]
    assert [r.grad_norm for r in reports] == pytest.approx(norms, rel=1e-5, nan_ok=True)
    torch.testing.assert_close(weight, twin, rtol=1e-4, atol=1e-6)


def test_the_l1_penalty_shrinks_the_magnitude_of_a_complex_weight() -> None:
    from guard.act.regularize import soft_threshold_

    weight = nn.Parameter(torch.tensor([3 + 4j, 0.1j, 0j]))
    soft_threshold_([weight], 1.0)
    torch.testing.assert_close(weight.detach(), torch.tensor([2.4 + 3.2j, 0j, 0j]))


@pytest.mark.parametrize(
    "clip", [{"max_value": 0.1}, {"kind": "agc"}, {"max_norm": 1.0, "norm_type": math.inf}]
)
def test_clips_without_a_meaning_for_complex_numbers_are_refused(clip: dict[str, Any]) -> None:
    with pytest.raises(UnsupportedGradient, match="complex parameters: set clip kind to auto"):
        train_rotation(as_real=False, config={"clip": clip}, bad=lambda _: False)


def trained_with_graph(clip: dict[str, Any], width: int, *, graph: bool) -> tuple[list[str], nn.Module]:
    """The fourth batch is far off."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(width, width), nn.Tanh(), nn.Linear(width, 1))
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    guard = GradientGuard(model, optimizer, GuardConfig.model_validate({"clip": clip}))
    actions = []
    for step in range(30):
        data = torch.randn(8, width) * (1e6 if step == 25 else 1.0)
        optimizer.zero_grad()
        loss = (model(data) - data.sum(1, keepdim=True)).square().mean()
        guard.observe_loss(loss)
        loss.backward(create_graph=graph)
        actions.append(guard.step().action)
    return actions, model


@pytest.mark.filterwarnings("ignore:Using backward.. with create_graph")
@pytest.mark.parametrize("width", [8, 200])
@pytest.mark.parametrize("kind", CLIPS)
def test_a_gradient_that_can_be_differentiated_is_used_as_one_that_cannot(kind: str, width: int) -> None:
    """As of a gradient penalty, or a second-order optimizer."""
    actions, model = trained_with_graph(CLIPS[kind], width, graph=True)
    expected, twin = trained_with_graph(CLIPS[kind], width, graph=False)
    assert actions == expected
    assert "skipped" in actions
    assert not differences(dict(model.state_dict()), dict(twin.state_dict()))
