"""Adaptive gradient clipping against a reference that goes unit by unit, element by element."""

from __future__ import annotations

import itertools
import math

import pytest
import torch
from torch import Tensor, nn

from tests.guard.clip.clip_cases import DTYPES, clip, gradients_of, observed, parameters_of

SHAPES: list[tuple[int, ...]] = [(), (1,), (6,), (4, 5), (3, 2, 4), (4, 3, 3, 2), (2, 3, 2, 2, 2)]


def units(tensor: Tensor) -> list[list[tuple[int, ...]]]:
    """The indices of each unit: those that share the first index of a matrix, all of a vector."""
    everything = list(itertools.product(*(range(n) for n in tensor.shape)))
    if tensor.ndim < 2:
        return [everything]
    return [[index for index in everything if index[0] == first] for first in range(tensor.shape[0])]


def length(tensor: Tensor, unit: list[tuple[int, ...]]) -> float:
    return math.sqrt(sum(float(tensor[index]) ** 2 for index in unit))


def reference(weight: Tensor, gradient: Tensor, clip_factor: float, eps: float) -> Tensor:
    clipped = gradient.to(torch.float64, copy=True)
    for unit in units(gradient):
        most, norm = clip_factor * max(length(weight, unit), eps), length(gradient, unit)
        for index in unit:
            clipped[index] *= most / norm if norm > most else 1.0
    return clipped


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("clip_factor", [0.01, 0.5, 100.0])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_agc_agrees_with_the_reference(
    shape: tuple[int, ...], clip_factor: float, dtype: torch.dtype
) -> None:
    parameters = parameters_of([shape, shape], dtype, seed=len(shape))
    before, gradients = observed(parameters).grad_norm, gradients_of(parameters)
    expected = [
        reference(p.detach(), g, clip_factor, 1e-3) for p, g in zip(parameters, gradients, strict=True)
    ]
    ratio = clip(parameters, {"kind": "agc", "clip_factor": clip_factor})
    rtol = 8e-3 if dtype == torch.bfloat16 else 1e-5
    for ours, theirs in zip(gradients_of(parameters), expected, strict=True):
        torch.testing.assert_close(ours.double(), theirs, rtol=rtol, atol=0.0)
    changed = any(not torch.equal(e, g.double()) for e, g in zip(expected, gradients, strict=True))
    assert (ratio is not None) == changed
    assert ratio is None or ratio == pytest.approx(observed(parameters).grad_norm / before, rel=1e-5)


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_zeros_stay_zeros(shape: tuple[int, ...]) -> None:
    parameter = nn.Parameter(torch.ones(shape))
    parameter.grad = torch.zeros(shape)
    assert clip([parameter], {"kind": "agc"}) is None
    assert torch.equal(parameter.grad, torch.zeros(shape))


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_weights_of_zero_can_still_move(shape: tuple[int, ...]) -> None:
    parameter = nn.Parameter(torch.zeros(shape))
    parameter.grad = torch.ones(shape)
    clip([parameter], {"kind": "agc", "clip_factor": 0.1, "eps": 0.5})
    lengths = [length(parameter.grad, unit) for unit in units(parameter.grad)]
    assert lengths == pytest.approx([0.05] * len(lengths))


def test_only_the_units_that_exceed_are_scaled() -> None:
    weight = nn.Parameter(torch.tensor([[3.0, 4.0], [3.0, 4.0], [0.0, 0.0]]))
    weight.grad = torch.tensor([[0.06, 0.08], [0.03, 0.02], [0.0, 0.0]])
    clip([weight], {"kind": "agc"})
    assert weight.grad[0].tolist() == pytest.approx([0.03, 0.04])
    assert torch.equal(weight.grad[1:], torch.tensor([[0.03, 0.02], [0.0, 0.0]]))
