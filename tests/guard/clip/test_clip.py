"""The interface that all kinds share, and the fixed kinds against torch's own functions."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from guard import ClipConfig
from guard.clip.base import coefficient
from guard.clip.make import make_clipper
from guard.observe.norms import SPLIT_ELEMENTS
from tests.guard.clip.clip_cases import (
    DTYPES,
    TOLERANCE,
    clip,
    clipper_of,
    gradients_of,
    norms,
    observed,
    parameters_of,
    random_shapes,
)

NORM_TYPES = [1.0, 2.0, 3.0, math.inf]
ALL_KINDS: dict[str, dict[str, Any]] = {
    "off": {"kind": "off"},
    "auto": {"kind": "auto"},
    "norm": {"max_norm": 0.1},
    "norm inf": {"max_norm": 0.1, "norm_type": math.inf},
    "norm 3": {"max_norm": 0.1, "norm_type": 3},
    "value": {"max_value": 0.01},
    "group": {"kind": "group", "max_norm": 0.1},
    "group 1": {"kind": "group", "max_norm": 0.1, "norm_type": 1},
    "agc": {"kind": "agc"},
    "autoclip": {"kind": "autoclip"},
    "zclip": {"kind": "zclip", "warmup_steps": 1},
    "adagc": {"kind": "adagc", "warmup_steps": 1},
}


def assert_close(ours: list[nn.Parameter], theirs: list[nn.Parameter]) -> None:
    for a, b in zip(ours, theirs, strict=True):
        torch.testing.assert_close(a.grad, b.grad, rtol=TOLERANCE[a.dtype], atol=0.0, equal_nan=True)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("norm_type", NORM_TYPES)
@pytest.mark.parametrize("max_norm", [0.01, 1.0, 1e6])
@pytest.mark.parametrize("seed", range(4))
def test_norm_agrees_with_torch(dtype: torch.dtype, norm_type: float, max_norm: float, seed: int) -> None:
    shapes = random_shapes(seed)
    ours, theirs = parameters_of(shapes, dtype, seed), parameters_of(shapes, dtype, seed)
    ratio = clip(ours, {"max_norm": max_norm, "norm_type": norm_type})
    total = float(nn.utils.clip_grad_norm_(theirs, max_norm, norm_type))
    assert_close(ours, theirs)
    assert (ratio is None) == (total <= max_norm)
    assert ratio is None or ratio == pytest.approx(max_norm / (total + 1e-6), rel=TOLERANCE[dtype])


@pytest.mark.parametrize("norm_type", NORM_TYPES)
def test_a_large_tensor_is_clipped_as_exactly_as_a_small_one(norm_type: float) -> None:
    """Torch's own float32 norms of it are up to 3e-4 off, so torch has float64 here."""
    ours = parameters_of([(SPLIT_ELEMENTS + 3,), (0, 4), (3,)])
    theirs = [nn.Parameter(p.detach().double()) for p in ours if p.numel()]
    for reference, gradient in zip(theirs, [g for g in gradients_of(ours) if g.numel()], strict=True):
        reference.grad = gradient.double()
    clip(ours, {"max_norm": 0.5, "norm_type": norm_type})
    nn.utils.clip_grad_norm_(theirs, 0.5, norm_type)
    for a, b in zip([p for p in ours if p.numel()], theirs, strict=True):
        torch.testing.assert_close(a.grad.double(), b.grad, rtol=2e-5, atol=0.0)  # type: ignore[union-attr]


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("max_value", [0.05, 1.0, 1e6])
@pytest.mark.parametrize("seed", range(4))
def test_value_equals_torch(dtype: torch.dtype, max_value: float, seed: int) -> None:
    shapes = random_shapes(seed)
    ours, theirs = parameters_of(shapes, dtype, seed), parameters_of(shapes, dtype, seed)
    before = observed(theirs).grad_norm
    ratio = clip(ours, {"max_value": max_value})
    changed = any(float(g.abs().max()) > max_value for g in gradients_of(theirs))
    nn.utils.clip_grad_value_(theirs, max_value)
    assert all(torch.equal(a.grad, b.grad) for a, b in zip(ours, theirs, strict=True))  # type: ignore[arg-type]
    assert (ratio is not None) == changed
    assert ratio is None or ratio == pytest.approx(observed(theirs).grad_norm / before, rel=1e-5)


@pytest.mark.parametrize("bad", [math.inf, -math.inf, math.nan])
def test_value_equals_torch_where_a_gradient_is_not_finite(bad: float) -> None:
    ours, theirs = parameters_of([(5,), (4, 4)]), parameters_of([(5,), (4, 4)])
    for parameters in (ours, theirs):
        parameters[0].grad[2] = bad  # type: ignore[index]
    clip(ours, {"max_value": 0.05})
    nn.utils.clip_grad_value_(theirs, 0.05)
    assert_close(ours, theirs)


def test_a_bfloat16_gradient_at_its_rounded_limit_is_not_clipped_again() -> None:
    parameters = parameters_of([(64,)], torch.bfloat16)
    assert clip(parameters, {"max_value": 0.1}) is not None
    assert clip(parameters, {"max_value": 0.1}) is None


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("norm_type", NORM_TYPES)
@pytest.mark.parametrize("seed", range(3))
def test_group_agrees_with_torch_group_by_group(dtype: torch.dtype, norm_type: float, seed: int) -> None:
    shapes = [*random_shapes(seed), (3, 2)]
    ours, theirs = parameters_of(shapes, dtype, seed), parameters_of(shapes, dtype, seed)
    ours[0].grad = theirs[0].grad = None
    groups = [slice(0, 2), slice(2, len(shapes) - 1)]
    optimizer = torch.optim.SGD([{"params": ours[group]} for group in groups], lr=0.1)
    clip(ours, {"kind": "group", "max_norm": 0.5, "norm_type": norm_type}, optimizer)
    for group in groups:
        nn.utils.clip_grad_norm_(theirs[group], 0.5, norm_type)
    assert_close(ours, theirs)


def test_a_group_that_is_added_later_is_clipped_too() -> None:
    parameters = parameters_of([(9,), (9,)])
    optimizer = torch.optim.SGD(parameters[:1], lr=0.1)
    clipper = make_clipper(ClipConfig(kind="group", max_norm=0.1), parameters, optimizer)
    optimizer.add_param_group({"params": parameters[1:]})
    clipper.clip_(clipper.plan(observed(parameters)))
    assert observed(parameters).layer_norms.tolist() == pytest.approx([0.1, 0.1], rel=1e-4)


@pytest.mark.parametrize("p", [1.5, 7.0, 30.0])
@pytest.mark.parametrize("scale", [1e-12, 1.0, 1e12])
def test_a_high_power_neither_overflows_nor_vanishes(p: float, scale: float) -> None:
    parameters = parameters_of([(50,), (7, 3)])
    exact = scale * torch.cat([g.double().reshape(-1) for g in gradients_of(parameters)]).norm(p).item()
    for parameter in parameters:
        parameter.grad = parameter.grad * scale  # type: ignore[operator]
    ratio = clip(parameters, {"max_norm": exact / 4, "norm_type": p})
    assert ratio == pytest.approx(exact / 4 / (exact + 1e-6), rel=1e-5)


@pytest.mark.parametrize("name", [name for name in ALL_KINDS if name != "value"])
@pytest.mark.parametrize("bad", [math.inf, -math.inf, math.nan])
def test_a_norm_that_is_not_finite_changes_nothing(name: str, bad: float) -> None:
    """Torch turns every gradient into NaN or zero here; the guard skips such a step, with its evidence."""
    parameters = parameters_of([(5,), (4, 4), (3,)])
    parameters[1].grad[1, 2] = bad  # type: ignore[index]
    before = gradients_of(parameters)
    clipper = make_clipper(ClipConfig.model_validate(ALL_KINDS[name]), parameters)
    for _ in range(3):
        clipper.plan(norms(1.0, 1.0, 1.0), typical=1.0)
    memory = clipper.state_dict()
    assert clipper.clip_(clipper.plan(observed(parameters), typical=1.0, suspect=True)) is None
    assert clipper.clip_(clipper.plan(observed(parameters), typical=1.0)) is None
    assert clipper.state_dict() == memory
    for a, b in zip(gradients_of(parameters), before, strict=True):
        assert torch.equal(a.nan_to_num(7.7), b.nan_to_num(7.7))


@pytest.mark.parametrize("name", ALL_KINDS)
def test_a_suspect_step_is_held_to_the_typical_norm_whatever_the_kind(name: str) -> None:
    parameters = parameters_of([(5,), (4, 4), (3,)])
    clipper = make_clipper(ClipConfig.model_validate(ALL_KINDS[name]), parameters)
    clipper.plan(observed(parameters))
    before, memory = observed(parameters).grad_norm, clipper.state_dict()
    plan = clipper.plan(observed(parameters), typical=0.001, suspect=True)
    ratio = clipper.clip_(plan)
    after = observed(parameters).grad_norm
    assert plan.limit == 0.002
    assert after == pytest.approx(0.002, rel=1e-3)
    assert ratio == pytest.approx(after / before, rel=1e-3)
    assert clipper.state_dict() == memory


@pytest.mark.parametrize("name", ALL_KINDS)
def test_what_is_not_above_its_limit_is_not_written_to(name: str) -> None:
    parameters = parameters_of([(5,), (4, 4), ()])
    for parameter in parameters:
        parameter.grad = parameter.grad * 1e-7  # type: ignore[operator]
    written = [p.grad._version for p in parameters]  # type: ignore[union-attr]
    clipper = make_clipper(ClipConfig.model_validate(ALL_KINDS[name]), parameters)
    for _ in range(4):
        assert clipper.clip_(clipper.plan(observed(parameters), typical=1.0)) is None
    assert [p.grad._version for p in parameters] == written  # type: ignore[union-attr]


def test_one_bound_tensor_leaves_the_others_unwritten() -> None:
    for config in ({"max_value": 5.0}, {"kind": "agc"}):
        parameters = parameters_of([(4, 4), (4, 4)])
        parameters[0].grad = torch.full((4, 4), 9.0)
        parameters[1].grad = torch.full((4, 4), 1e-6)
        assert clip(parameters, config) is not None
        assert parameters[1].grad._version == 0


@pytest.mark.parametrize("norm", [1e-9, 1.0, 1e9])
def test_a_norm_at_its_limit_has_the_coefficient_one(norm: float) -> None:
    assert coefficient(norm, norm) == 1.0
    assert coefficient(math.nan, norm) == coefficient(math.inf, norm) == coefficient(norm, None) == 1.0
    assert coefficient(2 * norm, norm) == norm / (2 * norm + 1e-6)


@pytest.mark.parametrize(
    ("config", "typical", "suspect", "limit"),
    [
        ({}, None, False, None),
        ({}, 2.0, False, 6.0),
        ({}, 2.0, True, 4.0),
        ({}, 0.0, True, None),
        ({"max_norm": 1.0}, 2.0, False, 1.0),
        ({"max_norm": 9.0}, 2.0, True, 4.0),
        ({"max_norm": 1.0}, 2.0, True, 1.0),
        ({"max_norm": 1.0, "norm_type": 1.0}, 2.0, False, None),
        ({"max_value": 1.0}, 2.0, False, None),
        ({"max_value": 1.0}, 2.0, True, 4.0),
        ({"kind": "off"}, 2.0, False, None),
        ({"kind": "off"}, 2.0, True, 4.0),
    ],
)
def test_the_limit_is_the_strictest_that_applies(
    config: dict[str, Any], typical: float | None, suspect: bool, limit: float | None
) -> None:
    assert clipper_of(**config).plan(norms(1.0), typical=typical, suspect=suspect).limit == limit


@pytest.mark.parametrize(
    ("config", "kind"),
    [
        ({}, "auto"),
        ({"max_norm": 1.0}, "norm"),
        ({"max_value": 1.0}, "value"),
        ({"kind": "group", "max_norm": 1.0}, "group"),
        ({"kind": "auto", "max_norm": None}, "auto"),
        ({"max_norm": 1.0, "norm_type": "inf"}, "norm"),
    ],
)
def test_a_limit_alone_selects_its_kind(config: dict[str, Any], kind: str) -> None:
    assert ClipConfig.model_validate(config).kind == kind


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"kind": "norm"}, "kind is norm but max_norm is not set: set max_norm, for example 1.0"),
        ({"kind": "group"}, "kind is group but max_norm is not set: set max_norm"),
        ({"kind": "value"}, "kind is value but max_value is not set: set max_value"),
        ({"percentile": 5}, "kind is auto, which has no percentile: remove it or set kind to autoclip"),
        ({"kind": "off", "max_norm": 1.0}, "kind is off.*remove it or set kind to norm or group"),
        ({"kind": "autoclip", "warmup_steps": 5}, "set kind to zclip or adagc"),
        ({"max_norm": 1.0, "max_value": 1.0}, "kind is norm, which has no max_value"),
        ({"max_norm": 1.0, "norm_type": 0.5}, "norm_type"),
        ({"max_norm": math.nan}, "max_norm"),
        ({"kind": "autoclip", "percentile": 101}, "percentile"),
        ({"kind": "nrom"}, "kind"),
    ],
)
def test_a_setting_that_does_not_fit_is_refused_with_what_to_set(
    config: dict[str, Any], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        ClipConfig.model_validate(config)


@pytest.mark.parametrize("name", ALL_KINDS)
def test_a_configuration_survives_being_written_out_in_full(name: str) -> None:
    config = ClipConfig.model_validate(ALL_KINDS[name])
    assert ClipConfig.model_validate(config.model_dump(mode="json")) == config


@pytest.mark.parametrize("name", ALL_KINDS)
def test_two_clippers_of_the_same_numbers_agree_to_the_bit(name: str) -> None:
    """As two ranks: what they clip by is a function of all-reduced numbers alone."""

    def run() -> tuple[list[Any], list[Tensor]]:
        parameters = parameters_of([(5,), (4, 4), (3, 2)])
        clipper = make_clipper(ClipConfig.model_validate(ALL_KINDS[name]), parameters)
        ratios = []
        for i in range(20):
            for p, fresh in zip(parameters, parameters_of([(5,), (4, 4), (3, 2)], seed=i), strict=True):
                p.grad = fresh.grad
            ratios.append(clipper.clip_(clipper.plan(observed(parameters), typical=5.0)))
        return ratios, gradients_of(parameters)

    (ratios, gradients), (again, gradients_again) = run(), run()
    assert ratios == again
    assert all(torch.equal(a, b) for a, b in zip(gradients, gradients_again, strict=True))
