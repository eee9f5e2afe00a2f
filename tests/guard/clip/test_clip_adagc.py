"""Per-tensor adaptive clipping against a direct reference, tensor by tensor, over 200 steps."""

from __future__ import annotations

import json
import math
import random
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from guard import ClipConfig, GuardError
from guard.clip.make import make_clipper
from tests.guard.clip.clip_cases import clipper_of, norms, observed, parameters_of

SHAPES = [(3, 4), (5,), (2, 3, 2)]
CONFIG: dict[str, Any] = {"kind": "adagc", "warmup_steps": 20}


def reference(run: list[list[torch.Tensor]], warmup: int) -> list[list[torch.Tensor]]:
    """Algorithm 1 of the paper, one tensor at a time."""
    means: list[float] = [math.inf] * len(run[0])
    clipped = []
    for t, gradients in enumerate(run):
        total = math.sqrt(sum(float(g.double().square().sum()) for g in gradients))
        row = []
        for i, g in enumerate(gradients):
            norm = float(g.double().norm())
            h = min(1.0 / total, 1.0) if t < warmup else min(1.05 * means[i] / norm, 1.0)
            kept = h * norm
            means[i] = min(means[i], kept) if t < warmup else 0.98 * means[i] + 0.02 * kept
            row.append(g * h)
        clipped.append(row)
    return clipped


def random_run(steps: int) -> list[list[torch.Tensor]]:
    pick = random.Random(3)
    run = []
    for seed in range(steps):
        size = math.exp(pick.gauss(-1.0, 0.5)) * (30.0 if seed % 37 == 5 else 1.0)
        run.append([p.grad * size for p in parameters_of(SHAPES, seed=seed) if p.grad is not None])
    return run


def test_adagc_agrees_with_the_reference_over_200_steps() -> None:
    run = random_run(200)
    parameters = parameters_of(SHAPES)
    clipper = make_clipper(ClipConfig(**CONFIG), parameters)
    changed = 0
    for gradients, expected in zip(run, reference(run, 20), strict=True):
        for parameter, gradient in zip(parameters, gradients, strict=True):
            parameter.grad = gradient.clone()
        changed += clipper.clip_(clipper.plan(observed(parameters))) is not None
        for parameter, clipped in zip(parameters, expected, strict=True):
            torch.testing.assert_close(parameter.grad, clipped, rtol=1e-5, atol=0.0)
    assert 20 < changed <= 200


def plans(clipper: Any, values: list[list[float]]) -> list[Any]:
    made = [clipper.plan(norms(*row)) for row in values]
    return [(p.limit, None if p.factors is None else p.factors.tolist()) for p in made]


def rows(count: int, seed: int = 0) -> list[list[float]]:
    pick = random.Random(seed)
    return [[math.exp(pick.gauss(i - 1, 0.4)) for i in range(3)] for _ in range(count)]


def test_the_warm_up_limits_the_global_norm_and_the_rest_each_tensor() -> None:
    clipper = clipper_of(3, **CONFIG, lambda_abs=0.5)
    made = plans(clipper, rows(25))
    assert made[:20] == [(0.5, None)] * 20
    assert all(limit is None and len(factors) == 3 for limit, factors in made[20:])


def test_a_spike_in_one_tensor_does_not_change_the_others() -> None:
    clipper = clipper_of(3, **CONFIG)
    plans(clipper, [[0.1, 0.2, 0.3]] * 30)
    ((_, factors),) = plans(clipper, [[0.1, 20.0, 0.3]])
    assert factors[0] == factors[2] == 1.0
    assert factors[1] == pytest.approx(1.05 * 0.2 / 20.0, rel=1e-6)


def test_a_tensor_without_gradient_for_a_while_is_not_held_to_zero() -> None:
    """An expert that got no token, a layer that begins at zero."""
    clipper = clipper_of(2, **CONFIG)
    plans(clipper, [[0.1, 0.0]] * 30)
    ((_, first),) = plans(clipper, [[0.1, 4.0]])
    assert first == [1.0, 0.25]  # held to lambda_abs
    plans(clipper, [[0.0, 0.0]] * 10)
    ((_, later),) = plans(clipper, [[0.1, 1.0]])
    assert later == [1.0, 1.0]


@pytest.mark.parametrize("scale", [1e-9, 1.0])
def test_small_tensors_are_not_starved(scale: float) -> None:
    clipper = clipper_of(2, **CONFIG)
    steady = [[scale, 1e-2 * scale]] * 300
    assert plans(clipper, steady)[-1] == (None, [1.0, 1.0])
    assert clipper.state_dict()["means"] == pytest.approx(steady[0])


def test_only_accepted_finite_norms_are_remembered() -> None:
    clean, dirty = clipper_of(3, **CONFIG), clipper_of(3, **CONFIG)
    for row in rows(60):
        dirty.plan(norms(math.nan, 1.0, 2.0))
        dirty.plan(norms(math.inf, 1.0, 2.0))
        dirty.plan(norms(1e-9, 100.0, 100.0), accepted=False)
        dirty.plan(norms(1e-9, 100.0, 100.0), typical=1.0, suspect=True)
        assert plans(clean, [row]) == plans(dirty, [row])


@pytest.mark.parametrize("at", [5, 20, 50])
def test_a_state_continues_identically(at: int) -> None:
    whole, resumed = clipper_of(3, **CONFIG), clipper_of(3, **CONFIG)
    plans(whole, rows(at))
    resumed.load_state_dict(json.loads(json.dumps(whole.state_dict())))
    assert plans(whole, rows(60, seed=1)) == plans(resumed, rows(60, seed=1))
    assert whole.state_dict() == resumed.state_dict()


def test_the_state_of_another_model_is_refused() -> None:
    with pytest.raises(GuardError, match="of 2 parameters, this model has 3: resume with the same model"):
        clipper_of(3, **CONFIG).load_state_dict(clipper_of(2, **CONFIG).state_dict())


def test_the_ratio_is_that_of_the_norms() -> None:
    parameters = [nn.Parameter(torch.ones(4)), nn.Parameter(torch.ones(4))]
    clipper = make_clipper(ClipConfig(**CONFIG), parameters)
    plans(clipper, [[0.5, 0.5]] * 20)
    parameters[0].grad, parameters[1].grad = torch.full((4,), 3.0), torch.full((4,), 0.1)
    before = observed(parameters)
    ratio = clipper.clip_(clipper.plan(before))
    after = observed(parameters)
    assert ratio == pytest.approx(after.grad_norm / before.grad_norm, rel=1e-6)
    assert after.layer_norms == pytest.approx(np.array([1.05 * 0.5, 0.2]), rel=1e-6)
