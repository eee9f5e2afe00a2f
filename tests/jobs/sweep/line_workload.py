"""A line through points, as a workload of the user's: a job that takes no time."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from jobs.spec.job_spec import JobSpec


class Line:
    """Learns ``y = 3 x``; ``options.rows`` points."""

    def __init__(self, spec: JobSpec) -> None:
        generator = torch.Generator().manual_seed(0)
        self.x = torch.randn(spec.options["rows"], 1, generator=generator)
        self.n_train = len(self.x)

    def build_model(self) -> nn.Module:
        return nn.Linear(1, 1)

    def train_batch(self, ids: Any, epoch: int, device: Any) -> Tensor:
        return self.x[ids.tolist()].to(device)

    def loss(self, model: nn.Module, batch: Tensor) -> Tensor:
        return (model(batch) - 3 * batch).square().mean()

    def evaluate(self, model: nn.Module, rank: int, world_size: int, device: Any) -> dict[str, float]:
        own = self.x[rank::world_size].to(device)
        with torch.no_grad():
            return {"loss": self.loss(model, own).item() * len(own), "count": float(len(own))}

    def metrics(self, sums: Mapping[str, float]) -> dict[str, float]:
        return {"test_loss": sums["loss"] / sums["count"]}
