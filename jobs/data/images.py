"""Labelled images: what every image source delivers, in memory or as files that are read when needed."""

from __future__ import annotations

import zlib
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Protocol, Self, TypeVar

import numpy as np
import torch
from torch import Tensor

from jobs.data.errors import DataError

_SUBSET_SEED = 20170828
_SEEN = 1000


@dataclass(frozen=True, slots=True, eq=False)
class ImageData:
    """Images of one size in memory.

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
        _check_labels(self)

    def __len__(self) -> int:
        return len(self.labels)

    @property
    def channels(self) -> int:
        """Colour channels of an image."""
        return self.images.shape[1]

    def fingerprint(self) -> str:
        """Identifies the samples and their order, by all labels and the pixels of some images."""
        rows = spread_rows(len(self))
        digest = zlib.crc32(
            self.images[rows].contiguous().numpy().data, zlib.crc32(self.labels.contiguous().numpy().data)
        )
        return f"{len(self)} images, {digest:08x}"

    def pixels(self, row: int) -> Tensor:
        """One image, uint8 [C, H, W]."""
        return self.images[row]

    def chosen(self, rows: Tensor) -> Self:
        """Only these samples."""
        return replace(self, images=self.images[rows], labels=self.labels[rows])

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


@dataclass(frozen=True, slots=True, eq=False)
class ImageFiles:
    """Image files of any size and format, read as colour when they are needed.

    Attributes:
        folder: that the paths are relative to.
        paths: of the files.
        labels: int64, shape [N], each an index into ``classes``.
        classes: the names of the classes.
        name: the data set, for messages.
    """

    folder: Path
    paths: tuple[str, ...]
    labels: Tensor
    classes: tuple[str, ...]
    name: str = "imagefolder"

    def __post_init__(self) -> None:
        _check_labels(self)

    def __len__(self) -> int:
        return len(self.paths)

    @property
    def channels(self) -> int:
        """Red, green and blue."""
        return 3

    def fingerprint(self) -> str:
        """Identifies the samples and their order, by the paths of all files and the sizes of some."""
        digest = zlib.crc32(self.labels.contiguous().numpy().data)
        for path in self.paths:
            digest = zlib.crc32(path.encode(errors="surrogateescape"), digest)
        for row in spread_rows(len(self)).tolist():
            digest = zlib.crc32(str(_size(self.folder / self.paths[row])).encode(), digest)
        return f"{len(self)} images, {digest:08x}"

    def pixels(self, row: int) -> Tensor:
        """One image, uint8 [3, H, W]; see ``jobs.data.decode`` for what is converted, and how.

        Raises:
            SampleError: the file is broken, gone, or of a kind that cannot be converted; it is named.
        """
        from jobs.data.decode import decode  # imports torchvision, which takes a second

        return decode(self.folder / self.paths[row])

    def chosen(self, rows: Tensor) -> Self:
        """Only these samples."""
        return replace(self, paths=tuple(self.paths[row] for row in rows.tolist()), labels=self.labels[rows])


class Images(Protocol):
    """One split of a data set."""

    @property
    def labels(self) -> Tensor:
        """int64, shape [N], each an index into ``classes``."""
        ...

    @property
    def classes(self) -> tuple[str, ...]:
        """The names of the classes."""
        ...

    @property
    def name(self) -> str:
        """The data set, for messages."""
        ...

    @property
    def channels(self) -> int:
        """Colour channels of an image."""
        ...

    def __len__(self) -> int: ...

    def fingerprint(self) -> str:
        """Identifies the samples and their order."""
        ...

    def pixels(self, row: int) -> Tensor:
        """One image, uint8 [C, H, W]; raises ``SampleError`` where it cannot be read."""
        ...

    def chosen(self, rows: Tensor) -> Self:
        """Only these samples."""
        ...


Split = TypeVar("Split", bound=Images)


def hold_out(images: Split, share: float, seed: int, where: str) -> tuple[Split, Split]:
    """Holds out a share of each class, at least one image of each that has two.

    Raises:
        DataError: there is one image of each class.
    """
    held_out = torch.zeros(len(images), dtype=torch.bool)
    for label in range(len(images.classes)):
        rows = (images.labels == label).nonzero().flatten()
        count = max(0, min(len(rows) - 1, max(1, round(len(rows) * share))))
        order = np.random.default_rng([seed, label]).permutation(len(rows))
        held_out[rows[torch.from_numpy(order[:count])]] = True
    if not held_out.any():
        raise DataError(f"{where}: has one sample of each class: there is none to evaluate on")
    return images.chosen((~held_out).nonzero().flatten()), images.chosen(held_out.nonzero().flatten())


def first(images: Split, limit: int | None) -> Split:
    """The first ``limit`` samples of a fixed shuffling, so that a small subset has every class.

    None, or a limit beyond the end, keeps all samples in their stored order.
    """
    if limit is None or limit >= len(images):
        return images
    rows = np.random.default_rng(_SUBSET_SEED).permutation(len(images))[:limit]
    return images.chosen(torch.from_numpy(rows))


def spread_rows(count: int) -> Tensor:
    """Rows that are spread over all: to read every image would take as long as an epoch."""
    return torch.linspace(0, count - 1, min(count, _SEEN)).long()


def _size(path: Path) -> int:
    try:
        return path.stat().st_size
    except OSError:
        return -1  # reading it will say so


def _check_labels(images: Images) -> None:
    if len(images.labels) == 0:
        raise DataError(f"{images.name}: holds no images")
    if int(images.labels.min()) < 0 or int(images.labels.max()) >= len(images.classes):
        raise DataError(f"{images.name}: a label is outside 0..{len(images.classes) - 1}")
