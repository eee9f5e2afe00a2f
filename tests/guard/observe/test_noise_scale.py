"""The gradient noise scale of a linear regression whose gradient covariance is known in closed form."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from guard import GradientGuard, GuardConfig, GuardMetrics, StepReport
from guard.observe.noise_scale import LEAST_STEPS, NoiseScale
from tests.guard.ranks import on_ranks

FEATURES = 4
NOISE = 0.5
RANK_SAMPLES = 8
STEPS = 400


def fed(ranks: int, steps: int, scale: NoiseScale | None = None, seed: int = 0) -> NoiseScale:
    """Standard normal inputs, weights off by (1, 1, ...): local and global gradients of the halved square."""
    generator = torch.Generator().manual_seed(seed)
    scale = scale or NoiseScale()
    for _ in range(steps):
        x = torch.randn(ranks, RANK_SAMPLES, FEATURES, generator=generator, dtype=torch.float64)
        error = x.sum(-1) - NOISE * torch.randn(ranks, RANK_SAMPLES, generator=generator, dtype=torch.float64)
        local = (x * error.unsqueeze(-1)).mean(1)
        scale.begin(float(local.mean(0).norm()), accepted=True)
        scale.complete(local.norm(dim=1).tolist())
    return scale


def closed_form() -> float:
    """In samples. With d = (1, ..., 1): E|g|^2 = (n + 2) |d|^2 + n noise^2, and |E g|^2 = |d|^2."""
    size = float(FEATURES)
    return ((FEATURES + 2) * size + FEATURES * NOISE**2 - size) / size


@pytest.mark.parametrize("ranks", [2, 4, 16])
def test_it_is_the_covariances_trace_over_the_squared_gradient(ranks: int) -> None:
    batch = ranks * RANK_SAMPLES
    estimates = [fed(ranks, 300, seed=seed).estimate(batch) for seed in range(20)]
    found = [estimate.samples for estimate in estimates if estimate is not None]
    assert len(found) == 20
    mean = sum(samples or 0.0 for samples in found) / 20
    assert mean == pytest.approx(closed_form(), rel=0.1)
    assert estimates[0] is not None
    assert estimates[0].samples == pytest.approx(estimates[0].ratio * batch)


def test_it_continues_from_its_state() -> None:
    whole = fed(4, 30)
    resumed = NoiseScale()
    resumed.load_state_dict(whole.state_dict())
    assert fed(4, 10, whole, seed=1).state_dict() == fed(4, 10, resumed, seed=1).state_dict()


def test_bad_steps_and_missing_norms_teach_nothing() -> None:
    scale = fed(2, LEAST_STEPS)
    before = scale.state_dict()
    for norm, accepted, local in [
        (1e9, False, [1e9, 1e9]),
        (math.nan, True, [1.0, 1.0]),
        (1.0, True, [math.nan, math.nan]),
        (1.0, True, [math.inf, 1.0]),
        (1.0, True, [1.0]),
    ]:
        scale.begin(norm, accepted=accepted)
        scale.complete(local)
    assert scale.state_dict() == before


def test_it_is_unknown_at_first_and_where_the_noise_hides_the_gradient() -> None:
    assert fed(2, LEAST_STEPS - 1).estimate() is None
    hidden = NoiseScale()
    for _ in range(50):
        hidden.begin(0.1, accepted=True)
        hidden.complete([1.0, 1.0])
    assert hidden.estimate() is None


def test_it_is_a_gauge() -> None:
    metrics = GuardMetrics(job="mine")
    metrics.observe(StepReport(), noise_scale=2.5)
    assert metrics.snapshot()["values"]["gradient_noise_scale"] == 2.5


def _regression(rank: int, ranks: int, _: Path) -> tuple[float, float, float]:
    """A real guarded run of the same regression; the weights stay where they are."""
    torch.manual_seed(rank)
    model = DistributedDataParallel(nn.Linear(FEATURES, 1, bias=False, dtype=torch.float64))
    torch.nn.init.zeros_(model.module.weight)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.0)
    metrics = GuardMetrics(job="noise")
    config = GuardConfig.model_validate({"local_norm": "always"})
    guard = GradientGuard(model, optimizer, config, metrics=metrics)
    for _step in range(STEPS):
        x = torch.randn(RANK_SAMPLES, FEATURES, dtype=torch.float64)
        y = x.sum(-1, keepdim=True) + NOISE * torch.randn(RANK_SAMPLES, 1, dtype=torch.float64)
        optimizer.zero_grad()
        guard.backward((model(x) - y).square().mean() / 2)
        guard.step()
    found = guard.noise_scale
    assert found is not None
    return found.ratio, metrics.snapshot()["values"]["gradient_noise_scale"], guard.steps


@pytest.mark.slow
def test_a_guarded_run_on_two_ranks_finds_it_and_shows_it(tmp_path: Path) -> None:
    (one, gauge, steps), (other, *_) = on_ranks(2, _regression, tmp_path)
    assert steps == STEPS
    assert one == other == gauge, "all ranks hold the same estimate"
    assert one * 2 * RANK_SAMPLES == pytest.approx(closed_form(), rel=0.25)
