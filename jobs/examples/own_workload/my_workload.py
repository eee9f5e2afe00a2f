"""Your own workload: a model, its data and its loss, outside of GradGuard.

It learns to classify wines by their chemistry; the data comes with scikit-learn. Nothing is inherited or
registered: a class with these members is a workload.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from sklearn.datasets import load_wine
from sklearn.model_selection import train_test_split
from torch import Tensor, nn
from torch.nn import functional


class Wine:
    """178 wines of three vineyards; a fifth is held out."""

    def __init__(self, spec: Any) -> None:
        self._hidden = spec.options.get("hidden", 32)
        self._seed = spec.seed
        features, labels = load_wine(return_X_y=True)
        features = (features - features.mean(0)) / features.std(0)
        parts = train_test_split(features, labels, test_size=0.2, random_state=0, stratify=labels)
        self._x, self._test_x = (torch.tensor(part, dtype=torch.float32) for part in parts[:2])
        self._y, self._test_y = (torch.tensor(part) for part in parts[2:])
        self.n_train = len(self._x)

    def build_model(self) -> nn.Module:
        """With the same weights on every worker: they depend on the seed alone."""
        torch.manual_seed(self._seed)
        return nn.Sequential(nn.Linear(13, self._hidden), nn.ReLU(), nn.Linear(self._hidden, 3))

    def train_batch(self, ids: np.ndarray, epoch: int, device: torch.device) -> tuple[Tensor, Tensor]:  # noqa: ARG002
        """The samples of these ids. What is drawn at random must depend on seed, epoch and ids alone."""
        rows = torch.from_numpy(ids.copy())
        return self._x[rows].to(device), self._y[rows].to(device)

    def loss(self, model: nn.Module, batch: tuple[Tensor, Tensor]) -> Tensor:
        """The mean over the batch."""
        inputs, labels = batch
        return functional.cross_entropy(model(inputs), labels)

    @torch.no_grad()
    def evaluate(
        self, model: nn.Module, rank: int, world_size: int, device: torch.device
    ) -> dict[str, float]:
        """Sums over this rank's share of the test set; they are added up over all ranks."""
        model.eval()
        inputs = self._test_x[rank::world_size].to(device)
        labels = self._test_y[rank::world_size].to(device)
        correct = (model(inputs).argmax(1) == labels).sum().item()
        model.train()
        return {"correct": float(correct), "count": float(len(labels))}

    def metrics(self, sums: Mapping[str, float]) -> dict[str, float]:
        """What is shown, from the sums over all ranks."""
        return {"test_accuracy": sums["correct"] / sums["count"]}
