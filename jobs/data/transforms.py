"""From stored bytes to what the model sees: augmentation per sample, scaling and normalisation per batch."""

from __future__ import annotations

from typing import Literal

import numpy as np
import torch
from torch import Tensor

from jobs.data.images import ImageData
from jobs.vision_compat import import_torchvision

import_torchvision()
from torchvision.transforms import v2  # noqa: E402

_MIRRORED_MEANS_SOMETHING_ELSE = frozenset({"digits"})


class ImageTransform:
    """Training and test transform of one data set.

    A sample is augmented from ``(seed, epoch, sample id)`` alone: however many workers share the batch,
    and in whatever order, it comes out the same, and the global random number generators stay untouched.
    """

    def __init__(self, train: ImageData, *, augment: Literal["none", "standard"], seed: int) -> None:
        mean, std = train.mean_and_std()
        self.normalize = v2.Compose([v2.ToDtype(torch.float32, scale=True), v2.Normalize(mean, std)])
        self._augment = _standard(train) if augment == "standard" else None
        self._seed = seed

    def train(self, images: Tensor, ids: np.ndarray, epoch: int, device: torch.device | str) -> Tensor:
        """uint8 [N, C, H, W] with their sample ids -> normalised float32 of the same shape, on ``device``."""
        if self._augment is not None:
            images = self._augmented(self._augment, images, ids, epoch)
        return self.test(images, device)

    def test(self, images: Tensor, device: torch.device | str) -> Tensor:
        """uint8 [N, C, H, W] -> normalised float32 of the same shape, on ``device``; nothing random."""
        return self.normalize(images.to(device, non_blocking=True))

    def _augmented(self, augment: v2.Transform, images: Tensor, ids: np.ndarray, epoch: int) -> Tensor:
        augmented = []
        with torch.random.fork_rng(devices=[]):
            for image, sample in zip(images, ids, strict=True):
                # Only the CPU generator: torch.manual_seed would reseed the GPU generators too.
                torch.default_generator.manual_seed(_sample_seed(self._seed, epoch, int(sample)))
                augmented.append(augment(image))
        return torch.stack(augmented)


def _standard(data: ImageData) -> v2.Transform:
    """Crop a padded image at random, and mirror it unless that changes its meaning."""
    size = tuple(data.images.shape[-2:])
    crop = v2.RandomCrop(size, padding=max(1, data.image_size // 8))
    if data.name in _MIRRORED_MEANS_SOMETHING_ELSE:
        return crop
    return v2.Compose([crop, v2.RandomHorizontalFlip()])


def _sample_seed(seed: int, epoch: int, sample: int) -> int:
    return int(np.random.SeedSequence([seed, epoch, sample]).generate_state(1, np.uint64)[0])
