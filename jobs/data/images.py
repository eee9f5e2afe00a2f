"""Labelled images in memory: what every image source delivers."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from jobs.data.errors import DataError

_SUBSET_SEED = 20170828


@dataclass(frozen=True, slots=True, eq=False)
class ImageData:
    """One split of a data set.

    Attributes:
        images: uint8, shape [N, C, H, W].
        labels: int64, shape [N], each an index into ``classes``.
        classes: the names of the classes.
        name: the data set, for messages.
    """

    images: Tensor
    labels: Tensor
    classes: tuple[str, ...]
    name: str

    def __post_init__(self) -> None:
        if self.images.dtype != torch.uint8 or self.images.ndim != 4:
            raise DataError(
                f"{self.name}: images must be uint8 of shape [N, C, H, W], "
                f"not {self.images.dtype} of shape {list(self.images.shape)}"
            )
        if len(self.images) != len(self.labels):
            raise DataError(f"{self.name}: {len(self.images)} images but {len(self.labels)} labels")
        if len(self.labels) == 0:
            raise DataError(f"{self.name}: holds no images")
        if int(self.labels.min()) < 0 or int(self.labels.max()) >= len(self.classes):
            raise DataError(f"{self.name}: a label lies outside 0..{len(self.classes) - 1}")

    def __len__(self) -> int:
        return len(self.labels)

    @property
    def channels(self) -> int:
        """Colour channels of an image."""
        return self.images.shape[1]

    @property
    def image_size(self) -> int:
        """Height of an image in pixels."""
        return self.images.shape[2]

    def first(self, limit: int | None) -> ImageData:
        """The first ``limit`` samples of a fixed shuffling, so that a small subset has every class.

        None, or a limit beyond the end, keeps all samples in their stored order.
        """
        if limit is None or limit >= len(self):
            return self
        chosen = torch.from_numpy(np.random.default_rng(_SUBSET_SEED).permutation(len(self))[:limit])
        return ImageData(self.images[chosen], self.labels[chosen], self.classes, self.name)

    def mean_and_std(self) -> tuple[list[float], list[float]]:
        """Mean and standard deviation per channel, of pixels scaled to 0..1; exact, from a histogram."""
        levels = torch.arange(256, dtype=torch.float64) / 255
        means, deviations = [], []
        for channel in range(self.channels):
            counts = torch.bincount(self.images[:, channel].flatten(), minlength=256).double()
            mean = (counts @ levels / counts.sum()).item()
            variance = (counts @ (levels - mean).square() / counts.sum()).item()
            means.append(mean)
            deviations.append(max(variance**0.5, 1 / 255))  # a blank channel must not divide by zero
        return means, deviations
