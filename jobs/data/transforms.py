"""What is done to an image before the model sees it: size, augmentation, normalisation; all of transforms v2.

Size and augmentation work on bytes, sample by sample where anything is random; normalisation on whole batches
on the device.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

import torch

from jobs.data.errors import DataError
from jobs.data.images import ImageData, Images
from jobs.torchvision_compat import import_torchvision

import_torchvision()
from torchvision.transforms import v2  # noqa: E402

if TYPE_CHECKING:
    from jobs.spec.augment import AugmentSpec
    from jobs.spec.data import DataSpec

_CHARACTERS = frozenset({"digits", "mnist", "kmnist", "svhn", "usps"})
_ANY_DEPTH = -1
_PADDING = 8


class Pipeline:
    """The transforms of one data set, from stored bytes to what the model sees.

    Attributes:
        size: height and width in pixels at which the model sees the images.
        fixed: what every image goes through; None if it stays as it is.
        random: what a training image goes through instead, drawn from torch's global generator; None if
            nothing is random.
        normalize: uint8 -> normalised float32, for images and batches.
    """

    def __init__(self, train: Images, config: DataSpec) -> None:
        augment = config.augmentation
        self.mean, self.std = _normalization(train, config)
        self.size = _size(train, config)
        scaled = v2.ToDtype(torch.float32, scale=True)
        self.normalize = v2.Compose([scaled, v2.Normalize(self.mean, self.std)])
        self.fixed = _sized(train, config, self.size)
        steps = [] if augment is None else list(self._random_steps(augment, train))
        self.random = v2.Compose(steps) if steps else None

    def _random_steps(self, augment: AugmentSpec, train: Images) -> Iterator[v2.Transform]:
        """In this order: geometry, colour, the policies, erasing."""
        yield from self._cropped(augment, train)
        yield from _mirrored(augment, train)
        if augment.rotation:
            yield v2.RandomRotation(augment.rotation, interpolation=v2.InterpolationMode.BILINEAR)
        if (color := augment.color) is not None:
            yield v2.ColorJitter(color.brightness, color.contrast, color.saturation, color.hue)
        if (rand := augment.randaugment) is not None:
            yield v2.RandAugment(rand.operations, rand.magnitude)
        if (mix := augment.augmix) is not None:
            yield v2.AugMix(mix.severity, mix.width, mix.depth or _ANY_DEPTH, mix.alpha)
        if (erasing := augment.erasing) is not None:
            fill = [round(255 * level) for level in self.mean] * (train.channels // len(self.mean))
            yield v2.RandomErasing(erasing.probability, erasing.scale, value=fill)

    def _cropped(self, augment: AugmentSpec, train: Images) -> Iterator[v2.Transform]:
        in_memory = isinstance(train, ImageData)
        crop = augment.crop if augment.crop != "auto" else "pad" if in_memory else "resized"
        if crop == "resized":
            yield v2.RandomResizedCrop(self.size, scale=augment.crop_scale, antialias=True)
            return
        if self.fixed is not None:
            yield self.fixed
        if crop == "pad":
            yield v2.RandomCrop(self.size, padding=augment.crop_padding or max(1, self.size // _PADDING))


def _size(train: Images, config: DataSpec) -> int:
    if config.size is not None:
        return config.size
    if not isinstance(train, ImageData):
        raise DataError(f"{train.name}: set data.image_size")
    height, width = train.images.shape[-2:]
    if height != width:
        raise DataError(f"{train.name}: the images have {height}x{width} pixels: set data.image_size")
    return height


def _sized(train: Images, config: DataSpec, size: int) -> v2.Transform | None:
    """The shorter side scaled, the middle cut out."""
    resize = config.resize_to
    stored = train.images.shape[2] if isinstance(train, ImageData) else None
    if resize is None or resize == size == stored:
        return None
    return v2.Compose([v2.Resize(resize, antialias=True), v2.CenterCrop(size)])


def _normalization(train: Images, config: DataSpec) -> tuple[list[float], list[float]]:
    given = config.normalization
    if given is not None:
        return _fitting(given.mean, train), _fitting(given.std, train)
    if isinstance(train, ImageData):
        return train.mean_and_std()
    raise DataError(
        "data.normalize = dataset: would read every image file: write imagenet, or mean and std in numbers"
    )


def _fitting(numbers: Sequence[float], train: Images) -> list[float]:
    """One for each channel; three, as ImageNet's, become their mean for grey images."""
    if len(numbers) == 3 and train.channels == 1:
        return [sum(numbers) / 3]
    if len(numbers) not in (1, train.channels):
        raise DataError(
            f"data.normalize: has {len(numbers)} numbers, and the images of {train.name} have "
            f"{train.channels} channels: write {train.channels}, or one for all"
        )
    return list(numbers)


def _mirrored(augment: AugmentSpec, train: Images) -> Iterator[v2.Transform]:
    automatic = "none" if train.name in _CHARACTERS else "horizontal"
    flip = automatic if augment.flip == "auto" else augment.flip
    if flip in ("horizontal", "both"):
        yield v2.RandomHorizontalFlip()
    if flip in ("vertical", "both"):
        yield v2.RandomVerticalFlip()
