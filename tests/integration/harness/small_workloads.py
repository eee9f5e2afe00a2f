"""A user's workloads on the digits, for jobs that are about their network."""

from __future__ import annotations

import time
from typing import Any

import torch
from torch import Tensor, nn

from jobs.workloads.vision import VisionWorkload


class Convolutions(VisionWorkload):
    """A network that is compiled in seconds. Option ``pause_s``: seconds to wait in each step."""

    def loss(self, model: nn.Module, batch: Any) -> Tensor:
        time.sleep(self._spec.options.get("pause_s", 0.0))
        return super().loss(model, batch)

    def build_model(self) -> nn.Module:
        with torch.random.fork_rng(devices=[]):
            torch.default_generator.manual_seed(self._spec.seed)
            body = (
                nn.Conv2d(1, 8, 3, padding=1),
                nn.BatchNorm2d(8),
                nn.ReLU(),
                nn.Conv2d(8, 16, 3, stride=2),
            )
            return nn.Sequential(*body, nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(16, 10))


class Sigmoids(VisionWorkload):
    """So deep, and with such an activation, that no gradient reaches the first layers."""

    def build_model(self) -> nn.Module:
        with torch.random.fork_rng(devices=[]):
            torch.default_generator.manual_seed(self._spec.seed)
            inner = [part for _ in range(12) for part in (nn.Linear(16, 16), nn.Sigmoid())]
            return nn.Sequential(nn.Flatten(), nn.Linear(64, 16), *inner, nn.Linear(16, 10))
