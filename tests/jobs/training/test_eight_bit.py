"""8-bit optimizers of bitsandbytes, by their import path, under the guard."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from guard import GradientGuard
from jobs.checkpoints import CheckpointManager
from jobs.spec.job_spec import JobSpec
from jobs.training.optim import build_optimizer

pytest.importorskip("bitsandbytes", reason="pip install bitsandbytes")
pytestmark = pytest.mark.filterwarnings("ignore")
SPEC = JobSpec.from_dict({"optimizer": {"name": "bitsandbytes.optim:AdamW8bit", "lr": 0.001}})
X = torch.randn(64, 128, generator=torch.Generator().manual_seed(1))


def parts() -> tuple[nn.Linear, Any]:
    torch.manual_seed(0)
    model = nn.Linear(128, 128)  # bitsandbytes keeps moments of fewer than 4096 numbers in float32
    return model, build_optimizer(SPEC.optimizer, model.parameters())


def loss_of(model: nn.Module) -> torch.Tensor:
    return (model(X) - X).square().mean()


def test_a_skip_leaves_no_trace_in_eight_bit_moments(tmp_path: Path) -> None:
    plain, own = parts()
    for _ in range(11):
        own.zero_grad()
        loss_of(plain).backward()
        own.step()
    model, optimizer = parts()
    guard = GradientGuard(model, optimizer)
    actions = []
    for attempt in range(12):
        optimizer.zero_grad()
        guard.backward(loss_of(model) * (math.nan if attempt == 8 else 1.0))
        actions.append(guard.step().action)
    assert actions == ["applied"] * 8 + ["skipped"] + ["applied"] * 3
    state, expected = optimizer.state[model.weight], own.state[plain.weight]
    assert state["state1"].dtype == torch.uint8
    assert torch.equal(model.weight, plain.weight)
    assert torch.equal(state["state1"], expected["state1"])
    assert torch.equal(state["absmax2"], expected["absmax2"])
    kept = CheckpointManager(tmp_path, {"model": model, "optimizer": optimizer, "guard": guard})
    kept.save(11, closing=True)
    again, other = parts()
    loaded = {"model": again, "optimizer": other, "guard": GradientGuard(again, other)}
    assert CheckpointManager(tmp_path, loaded).load_latest() == 11
    for one, optim in ((model, optimizer), (again, other)):
        optim.zero_grad()
        loss_of(one).backward()
        optim.step()
    assert torch.equal(model.weight, again.weight), "a resumed run takes the same step"
