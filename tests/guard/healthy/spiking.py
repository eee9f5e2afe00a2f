"""Trainings whose loss spikes without a fault and falls again: see ``trainings``, whose interface they have.

The metric is the median of the last 50 losses: the end may be within a spike.
"""

from __future__ import annotations

from collections.abc import Callable
from statistics import median

import torch
from sklearn.datasets import load_digits
from torch import Tensor, nn
from torch.nn import functional as F
from torch.optim.lr_scheduler import CosineAnnealingWarmRestarts

from tests.guard.healthy.trainings import Update, Wrap, mlp

DIGITS = tuple(torch.tensor(part) for part in load_digits(return_X_y=True))


def digits(count: int, seed: int) -> tuple[Tensor, Tensor]:
    rows = torch.randperm(len(DIGITS[1]), generator=torch.Generator().manual_seed(seed))[:count]
    return DIGITS[0][rows].float() / 16, DIGITS[1][rows].long()


def end(update: Update, loss: Callable[[], Tensor], steps: int) -> float:
    losses = []
    for _ in range(steps):
        value = loss()
        losses.append(value.item())
        update(value)
    return median(losses[-50:])


def edge_of_stability(seed: int, wrap: Wrap) -> float:
    """Gradient descent on all samples at once: curvature rises to the rate's edge (Cohen et al. 2021)."""
    torch.manual_seed(seed)
    x, y = digits(400, seed)
    model = mlp(64, 64, 64, 10)
    update = wrap(model, torch.optim.SGD(model.parameters(), lr=1.5))
    return end(update, lambda: F.mse_loss(model(x), F.one_hot(y, 10) * 2 - 0.2), 1000)


def edge_with_tanh(seed: int, wrap: Wrap) -> float:
    """The same with another network, where spikes grow slowly."""
    torch.manual_seed(seed)
    x, y = digits(400, seed)
    model = mlp(64, 64, 64, 10, activation=nn.Tanh)
    update = wrap(model, torch.optim.SGD(model.parameters(), lr=1.0))
    return end(update, lambda: F.mse_loss(model(x), F.one_hot(y, 10) * 2 - 0.2), 1000)


def catapult(seed: int, wrap: Wrap) -> float:
    """A wide network at a rate above the edge of its first weights (Lewkowycz et al. 2020)."""
    torch.manual_seed(seed)
    x, y = digits(256, seed)
    model = mlp(64, 512, 10)
    update = wrap(model, torch.optim.SGD(model.parameters(), lr=2.0))
    return end(update, lambda: F.mse_loss(model(x), F.one_hot(y, 10) * 2.0), 500)


def slingshot(seed: int, wrap: Wrap) -> float:
    """Modular addition learnt by heart with Adam, long after the loss is zero (Thilak et al. 2022)."""
    torch.manual_seed(seed)
    pairs = torch.cartesian_prod(torch.arange(17), torch.arange(17))[torch.randperm(289)[:144]]
    model = nn.Sequential(nn.Embedding(17, 32), nn.Flatten(), mlp(64, 64, 64, 64, 17))
    update = wrap(model, torch.optim.Adam(model.parameters(), lr=3e-3, betas=(0.9, 0.98)))
    return end(update, lambda: F.cross_entropy(model(pairs), pairs.sum(1) % 17), 1500)


class Sine(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return torch.sin(10 * x)


def neural_field(seed: int, wrap: Wrap) -> float:
    """An image learnt by heart to 1e-9 (Sitzmann et al. 2020): gradients fall as far, and rise again."""
    torch.manual_seed(seed)
    side = torch.linspace(-1, 1, 16)
    places = torch.cartesian_prod(side, side)
    image = (DIGITS[0][seed].float() / 16).reshape(8, 8)
    pixels = image.repeat_interleave(2, 0).repeat_interleave(2, 1).reshape(-1, 1)
    model = nn.Sequential(nn.Linear(2, 64), Sine(), nn.Linear(64, 64), Sine(), nn.Linear(64, 1))
    update = wrap(model, torch.optim.Adam(model.parameters(), lr=3e-3))
    return end(update, lambda: F.mse_loss(model(places), pixels), 1200)


def restarts(seed: int, wrap: Wrap) -> float:
    """All samples at once, at a rate that returns to the edge every 150 steps."""
    torch.manual_seed(seed)
    x, y = digits(400, seed)
    model = mlp(64, 64, 64, 10)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.5)
    update = wrap(model, optimizer, CosineAnnealingWarmRestarts(optimizer, 150))
    return end(update, lambda: F.cross_entropy(model(x), y), 1000)


SPIKING: list[Callable[[int, Wrap], float]] = [
    edge_of_stability,
    edge_with_tanh,
    catapult,
    slingshot,
    neural_field,
    restarts,
]
