"""The regularizers' steps end at the closed-form solutions."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn

from guard.act.regularize import elastic_net_, gradient_noise_, orthogonal_penalty, shrink_, soft_threshold_

TARGET = torch.tensor([3.0, -2.0, 0.4, -0.3, 0.0, 1.0])


def minimize(l1: float, l2: float, *, steps: int = 400, lr: float = 0.1) -> torch.Tensor:
    """argmin 1/2 |w - target|^2 + l1 |w| + l2/2 w^2 by proximal gradient steps with a fused optimizer."""
    weight = nn.Parameter(torch.randn(6, generator=torch.Generator().manual_seed(0)))
    optimizer = torch.optim.SGD([weight], lr=lr, fused=True)
    for _ in range(steps):
        optimizer.zero_grad()
        (0.5 * (weight - TARGET).square().sum()).backward()
        optimizer.step()
        elastic_net_([weight], l1=lr * l1, l2=lr * l2)
    return weight.detach()


def test_l1_ends_at_the_soft_threshold_with_exact_zeros():
    found = minimize(l1=0.5, l2=0.0)
    expected = torch.tensor([2.5, -1.5, 0.0, 0.0, 0.0, 0.5])
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=0)
    assert (found == 0).tolist() == (expected == 0).tolist()


def test_the_elastic_net_ends_at_its_closed_form():
    soft = torch.sign(TARGET) * (TARGET.abs() - 0.5).clamp(min=0)
    torch.testing.assert_close(minimize(l1=0.5, l2=2.0), soft / 3.0, atol=1e-5, rtol=0)


def test_l2_ends_at_the_ridge_solution():
    generator = torch.Generator().manual_seed(0)
    inputs = torch.randn(50, 4, generator=generator, dtype=torch.float64)
    outputs = torch.randn(50, generator=generator, dtype=torch.float64)
    weight = nn.Parameter(torch.zeros(4, dtype=torch.float64))
    optimizer = torch.optim.SGD([weight], lr=0.3)
    for _ in range(300):
        optimizer.zero_grad()
        (0.5 * (inputs @ weight - outputs).square().mean()).backward()
        optimizer.step()
        shrink_([weight], 0.3 * 0.2)
    gram = inputs.T @ inputs / 50 + 0.2 * torch.eye(4, dtype=torch.float64)
    torch.testing.assert_close(weight.detach(), torch.linalg.solve(gram, inputs.T @ outputs / 50))


def test_nothing_happens_at_strength_zero():
    weight = torch.randn(5)
    before = weight.clone()
    elastic_net_([weight], l1=0.0, l2=0.0)
    soft_threshold_([], 1.0)
    shrink_([], 1.0)
    assert torch.equal(weight, before)


@pytest.mark.parametrize("shape", [(4, 7), (7, 4), (4, 3, 2, 2)])
def test_the_orthogonal_penalty_has_the_gradient_of_its_formula(shape: tuple[int, ...]):
    weight = nn.Parameter(torch.randn(shape, generator=torch.Generator().manual_seed(0)))
    orthogonal_penalty([weight]).backward()
    flat = weight.detach().flatten(1)
    wide = flat if flat.shape[0] <= flat.shape[1] else flat.T
    slope = 4 * (wide @ wide.T - torch.eye(len(wide))) @ wide
    expected = slope if flat.shape[0] <= flat.shape[1] else slope.T
    torch.testing.assert_close(weight.grad, expected.reshape(shape), rtol=1e-4, atol=1e-4)


def test_the_orthogonal_penalty_is_exact_under_autocast_and_leads_to_orthogonal_rows():
    weight = nn.Parameter(0.3 * torch.randn(4, 9, generator=torch.Generator().manual_seed(0)))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(orthogonal_penalty([weight]), orthogonal_penalty([weight.detach().clone()]))
    optimizer = torch.optim.SGD([weight], lr=0.05)
    for _ in range(300):
        optimizer.zero_grad()
        orthogonal_penalty([weight]).backward()
        optimizer.step()
    torch.testing.assert_close(weight.detach() @ weight.detach().T, torch.eye(4), atol=1e-4, rtol=0)


def test_gradient_noise_has_its_deviation_and_depends_on_the_seed_alone():
    first, second, other = (torch.zeros(100_000) for _ in range(3))
    torch.manual_seed(3)
    expected = torch.rand(2)
    torch.manual_seed(3)
    gradient_noise_([first], std=0.2, seed=7)
    gradient_noise_([second], std=0.2, seed=7)
    gradient_noise_([other], std=0.2, seed=8)
    assert torch.equal(torch.rand(2), expected)
    assert torch.equal(first, second)
    assert not torch.equal(first, other)
    assert math.isclose(first.std().item(), 0.2, rel_tol=0.02)
