"""The regression problem that the tests of both frameworks train on. Import it before the frameworks."""

from __future__ import annotations

import math
import os
from typing import Any

os.environ["HF_HUB_OFFLINE"] = "1"

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from guard import FaultConfig, FaultInjector
from jobs.torchvision_compat import import_torchvision

import_torchvision()  # both frameworks import it, and fail where the plain import does
torch.set_num_threads(1)

BATCH = 32
BATCHES = 60
NEVER = 1e6
"""A clipping limit that no gradient reaches."""


def network(dropout: float = 0.1) -> nn.Module:
    """BatchNorm for buffers, Dropout for random numbers."""
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Linear(8, 32), nn.BatchNorm1d(32), nn.ReLU(), nn.Dropout(dropout), nn.Linear(32, 4, bias=False)
    )


def samples(*, bad_batch: int | None = None, batches: int = BATCHES) -> tuple[Tensor, Tensor]:
    """Inputs and targets; one batch may be NaN."""
    generator = torch.Generator().manual_seed(7)
    mixing = torch.randn(8, 4, generator=generator)
    inputs = torch.randn(batches * BATCH, 8, generator=generator)
    targets = torch.tanh(inputs @ mixing)
    if bad_batch is not None:
        inputs[bad_batch * BATCH : (bad_batch + 1) * BATCH] = math.nan
    return inputs, targets


@torch.no_grad()
def loss_of(model: nn.Module) -> float:
    """The loss on clean data."""
    inputs, targets = samples()
    was_training = model.training
    loss = nn.functional.mse_loss(model.eval()(inputs), targets)
    model.train(was_training)
    return float(loss)


def state_of(model: nn.Module, optimizer: Optimizer, schedule: Any = None) -> dict[str, Any]:
    """Copies of all that a step may change."""
    moments = [optimizer.state[p] for group in optimizer.param_groups for p in group["params"]]
    return {
        "model": {name: value.clone() for name, value in model.state_dict().items()},
        "optimizer": [
            {k: v.clone() if isinstance(v, Tensor) else v for k, v in state.items()} for state in moments
        ],
        "lr": [group["lr"] for group in optimizer.param_groups],
        "schedule": None if schedule is None else dict(schedule.state_dict()),
    }


def injector(fault: dict[str, Any], model: nn.Module, optimizer: Optimizer, rank: int = 0) -> FaultInjector:
    """Breaks a training by ``fault``."""
    return FaultInjector([FaultConfig.model_validate(fault)], model=model, optimizer=optimizer, rank=rank)
