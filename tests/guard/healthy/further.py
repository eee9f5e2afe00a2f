"""Trainings that had no part in any choice: see ``trainings``, whose interface they have."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import nn
from torch.nn import functional as F

from tests.guard.healthy.trainings import STEPS, Wrap, mlp


def cauchy(seed: int, wrap: Wrap) -> float:
    """Huber loss on targets with Cauchy noise, which has no mean."""
    torch.manual_seed(seed)
    x, weights = torch.randn(4096, 8), torch.randn(8, 1)
    noise = torch.distributions.Cauchy(0.0, 0.1).sample((4096, 1))
    model = mlp(8, 32, 1)
    update = wrap(model, torch.optim.Adam(model.parameters(), lr=3e-3))
    for _ in range(STEPS):
        rows = torch.randint(4096, (32,))
        update(F.smooth_l1_loss(model(x[rows]), x[rows] @ weights + noise[rows]))
    return F.mse_loss(model(x), x @ weights).item()


def label_noise(seed: int, wrap: Wrap) -> float:
    """Batches of four, one label in ten wrong, and a network that learns them by heart."""
    torch.manual_seed(seed)
    x = torch.randn(512, 16)
    clean = (x[:, :4].sum(1) > 0).long()
    y = torch.where(torch.rand(512) < 0.1, 1 - clean, clean)
    model = mlp(16, 128, 2)
    update = wrap(model, torch.optim.Adam(model.parameters(), lr=3e-3))
    for _ in range(STEPS):
        rows = torch.randint(512, (4,))
        update(F.cross_entropy(model(x[rows]), y[rows]))
    return float((model(x).argmax(1) != clean).float().mean())


def three_samples(seed: int, wrap: Wrap) -> float:
    """BatchNorm over batches of three."""
    torch.manual_seed(seed)
    x = torch.randn(1024, 16)
    y = (x[:, :4].sin().sum(1) > 0).long()
    model = nn.Sequential(nn.Linear(16, 64), nn.BatchNorm1d(64), nn.ReLU(), nn.Linear(64, 2))
    update = wrap(model, torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9))
    for _ in range(STEPS):
        rows = torch.randint(1024, (3,))
        update(F.cross_entropy(model(x[rows]), y[rows]))
    return F.cross_entropy(model.eval()(x), y).item()


def imbalance(seed: int, wrap: Wrap) -> float:
    """One class in fifty: a batch that has it is a lone rise."""
    torch.manual_seed(seed)
    x = torch.randn(2048, 8)
    y = (x[:, 0] > 2.05).long()
    model = mlp(8, 32, 2)
    update = wrap(model, torch.optim.Adam(model.parameters(), lr=3e-3))
    for _ in range(STEPS):
        rows = torch.randint(2048, (8,))
        update(F.cross_entropy(model(x[rows]), y[rows]))
    return F.cross_entropy(model(x), y).item()


FURTHER: list[Callable[[int, Wrap], float]] = [cauchy, label_noise, three_samples, imbalance]
