"""A small network on rows of numbers."""

from __future__ import annotations

import itertools

import torch
from torch import Tensor, nn

from jobs.spec.sections import ModelSpec

WIDTH, LAYERS = 256, 2


class Standardized(nn.Module):
    """Subtracts the mean of the training rows and divides by their deviation; both are in the checkpoint."""

    mean: Tensor
    std: Tensor

    def __init__(self, mean: Tensor, std: Tensor) -> None:
        super().__init__()
        self.register_buffer("mean", mean)
        self.register_buffer("std", std)

    def forward(self, rows: Tensor) -> Tensor:
        """Rows [N, features], as they are in the table."""
        return (rows - self.mean) / self.std


def build_mlp(
    model: ModelSpec, *, features: int, classes: int, mean: Tensor | None = None, std: Tensor | None = None
) -> nn.Module:
    """``model.layers`` hidden layers of ``model.width`` with ReLU, on standardized features.

    Args:
        model: its section of the spec.
        features: numbers of a row.
        classes: outputs.
        mean: of the training rows, float32 [features].
        std: their deviation.
    """
    mean = torch.zeros(features) if mean is None else mean
    std = torch.ones(features) if std is None else std
    sizes = [features, *[model.width or WIDTH] * (model.layers or LAYERS)]
    hidden = [part for a, b in itertools.pairwise(sizes) for part in (nn.Linear(a, b), nn.ReLU())]
    return nn.Sequential(Standardized(mean.clone(), std.clone()), *hidden, nn.Linear(sizes[-1], classes))
