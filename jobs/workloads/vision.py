"""The built-in image classification: a torchvision model on Fashion-MNIST or on digits."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional

from jobs.data import load_images
from jobs.data.transforms import ImageTransform
from jobs.models import build_model
from jobs.workloads.losses import cross_entropy

if TYPE_CHECKING:
    import numpy as np

    from jobs.spec import JobSpec

_EVAL_BATCH = 500


class VisionWorkload:
    """Cross-entropy on labelled images; fulfils ``jobs.workloads.base.Workload``."""

    def __init__(self, spec: JobSpec) -> None:
        self._spec = spec
        self._train, self._test = load_images(spec.data)
        self._transform = ImageTransform(self._train, augment=spec.data.augment, seed=spec.seed)
        self.n_train = len(self._train)

    def build_model(self) -> nn.Module:
        """The spec's model for these images and classes."""
        return build_model(
            self._spec.model,
            channels=self._train.channels,
            classes=len(self._train.classes),
            image_size=self._train.image_size,
            seed=self._spec.seed,
        )

    def train_batch(
        self, ids: NDArray[np.int64], epoch: int, device: torch.device | str
    ) -> tuple[Tensor, Tensor]:
        """Normalised images, float32 [N, C, H, W], and labels, int64 [N]."""
        rows = torch.from_numpy(ids.copy())
        images = self._transform.train(self._train.images[rows], ids, epoch, device)
        return images, self._train.labels[rows].to(device, non_blocking=True)

    def loss(self, model: nn.Module, batch: tuple[Tensor, Tensor]) -> Tensor:
        """Mean cross-entropy in nats, with the label smoothing and the z-loss of the spec."""
        images, labels = batch
        own = self._spec.regularize
        return cross_entropy(model(images), labels, label_smoothing=own.label_smoothing, z_loss=own.z_loss)

    @torch.no_grad()
    def evaluate(
        self, model: nn.Module, rank: int, world_size: int, device: torch.device | str
    ) -> dict[str, float]:
        """Correct answers, loss and number of the test samples ``rank, rank + world_size, ...``."""
        was_training = model.training
        model.eval()
        sums = {"correct": 0.0, "loss_sum": 0.0, "count": 0.0}
        for rows in torch.arange(len(self._test))[rank::world_size].split(_EVAL_BATCH):
            if len(rows) == 0:
                continue  # more ranks than samples
            labels = self._test.labels[rows].to(device)
            outputs = model(self._transform.test(self._test.images[rows], device)).float()
            sums["correct"] += (outputs.argmax(1) == labels).sum().item()
            sums["loss_sum"] += functional.cross_entropy(outputs, labels, reduction="sum").item()
            sums["count"] += len(rows)
        model.train(was_training)
        return sums

    def metrics(self, sums: Mapping[str, float]) -> dict[str, float]:
        """Accuracy and mean loss over the test set."""
        count = sums["count"]
        return {"test_accuracy": sums["correct"] / count, "test_loss": sums["loss_sum"] / count}
