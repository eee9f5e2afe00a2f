"""Norms against float64 references."""

from __future__ import annotations

import math
import random

import pytest
import torch
from torch import Tensor, nn

from guard.observe.observer import Observer
from guard.observe.watched import parameter_names
from tests.guard.loops import network

LARGE = 1 << 20
DTYPES = [torch.float32, torch.bfloat16, torch.float16, torch.float64]


def with_gradients(shapes: list[tuple[int, ...]], dtype: torch.dtype, seed: int = 0) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    named: dict[str, Tensor] = {}
    for i, shape in enumerate(shapes):
        parameter = nn.Parameter(torch.zeros(shape, dtype=dtype))
        parameter.grad = torch.randn(shape, generator=generator).to(dtype) * 10.0 ** (i % 3 - 1)
        named[f"p{i}"] = parameter
    return named


def reference(named: dict[str, Tensor]) -> list[float]:
    return [float(p.grad.double().norm()) if p.grad is not None else 0.0 for p in named.values()]


def random_shapes(seed: int) -> list[tuple[int, ...]]:
    pick = random.Random(seed)
    return [tuple(pick.randint(1, 9) for _ in range(pick.randint(0, 4))) for _ in range(pick.randint(1, 12))]


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("seed", range(5))
def test_norms_agree_with_float64(dtype: torch.dtype, seed: int) -> None:
    named = with_gradients(random_shapes(seed), dtype, seed)
    seen = Observer(named).observe()
    layers = reference(named)
    assert seen.layer_norms.tolist() == pytest.approx(layers, rel=1e-6)
    assert seen.grad_norm == pytest.approx(math.hypot(*layers), rel=1e-6)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_a_large_tensor_is_measured_as_exactly_as_a_small_one(dtype: torch.dtype) -> None:
    named = with_gradients([(3 * LARGE + 5,), (4,)], dtype)
    assert Observer(named).observe().layer_norms.tolist() == pytest.approx(reference(named), rel=1e-4)


def test_a_transposed_large_gradient_is_measured_too() -> None:
    named = with_gradients([(1200, 1000)], torch.float32)
    named["p0"].grad = torch.randn(1000, 1200).t()
    assert Observer(named).observe().grad_norm == pytest.approx(reference(named)[0], rel=2e-5)


def test_dtypes_may_be_mixed() -> None:
    named = {str(d): with_gradients([(7, 3)], d)["p0"] for d in DTYPES}
    assert Observer(named).observe().layer_norms.tolist() == pytest.approx(reference(named), rel=1e-6)


def test_missing_empty_and_frozen_gradients_count_as_zero() -> None:
    named = with_gradients([(3,), (0, 4), (2,)], torch.float32)
    named["p2"].grad = None
    frozen = nn.Parameter(torch.ones(2), requires_grad=False)
    observer = Observer({**named, "frozen": frozen})
    seen = observer.observe()
    assert observer.names == ["p0", "p1", "p2"]
    assert seen.layer_norms.tolist() == pytest.approx([reference(named)[0], 0.0, 0.0])


def test_without_any_gradient_the_norm_is_zero() -> None:
    assert Observer({"w": nn.Parameter(torch.ones(2))}).observe().grad_norm == 0.0


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_one_bad_element_makes_its_layer_and_the_norm_not_finite(bad: float, dtype: torch.dtype) -> None:
    named = with_gradients([(5,), (4, 4), (3,)], dtype)
    assert named["p1"].grad is not None
    named["p1"].grad[2, 1] = bad
    seen = Observer(named).observe()
    assert not math.isfinite(seen.grad_norm)
    assert [math.isfinite(n) for n in seen.layer_norms] == [True, False, True]


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # torch.compile's own imports
def test_names_are_those_of_the_users_model() -> None:
    model = network()
    compiled = torch.compile(model)
    assert isinstance(compiled, nn.Module)
    assert list(parameter_names(compiled)) == [name for name, _ in model.named_parameters()]
