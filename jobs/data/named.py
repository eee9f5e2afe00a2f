"""Data sets that torchvision knows by name, small enough to be held in memory."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from jobs.data.errors import DataError
from jobs.data.images import ImageData
from jobs.torchvision_compat import import_torchvision

import_torchvision()
from torchvision import datasets  # noqa: E402

if TYPE_CHECKING:
    from jobs.spec.data import DataSpec


@dataclass(frozen=True, slots=True)
class _Kind:
    """How torchvision is asked for one data set.

    Attributes:
        make: its class.
        argument: that chooses the split.
        splits: its values for the training and the test split.
        labels: the attribute with the labels.
    """

    make: Callable[..., Any]
    argument: str
    splits: tuple[Any, Any]
    labels: str


_TRAIN_FLAG = ("train", (True, False), "targets")
_SPLIT_NAME = ("split", ("train", "test"), "labels")
_KINDS = {
    "mnist": _Kind(datasets.MNIST, *_TRAIN_FLAG),
    "kmnist": _Kind(datasets.KMNIST, *_TRAIN_FLAG),
    "cifar10": _Kind(datasets.CIFAR10, *_TRAIN_FLAG),
    "cifar100": _Kind(datasets.CIFAR100, *_TRAIN_FLAG),
    "usps": _Kind(datasets.USPS, *_TRAIN_FLAG),
    "svhn": _Kind(datasets.SVHN, *_SPLIT_NAME),
    "stl10": _Kind(datasets.STL10, *_SPLIT_NAME),
}


def load_named(config: DataSpec) -> tuple[ImageData, ImageData]:
    """Training and test split of the data set, from ``data.root``; downloads it only where that is allowed.

    Raises:
        DataError: it is not there, is damaged, or cannot be downloaded.
    """
    root = Path(config.root or "").expanduser()
    train, test = (_load(config, root, split) for split in (0, 1))
    return train, test


def _load(config: DataSpec, root: Path, split: int) -> ImageData:
    name, kind = config.dataset, _KINDS[config.dataset]
    try:
        found = kind.make(str(root), **{kind.argument: kind.splits[split]}, download=config.download)
    except ModuleNotFoundError as error:
        raise DataError(f"{name}: reading it needs {error.name}: pip install {error.name}") from None
    except Exception as error:
        reason = " ".join(str(error).split()).rstrip(".") or type(error).__name__
        if config.download:
            raise DataError(f"{name}: the download into {root} failed: {reason}") from error
        raise DataError(
            f"{name} cannot be read from data.root = {root}: {reason}: "
            "set data.root to the folder that torchvision keeps it in, or set data.download: true"
        ) from error
    labels = torch.as_tensor(np.asarray(getattr(found, kind.labels))).long()
    classes = tuple(getattr(found, "classes", ())) or tuple(map(str, range(int(labels.max()) + 1)))
    return ImageData(_channels_first(found.data), labels, classes, name)


def _channels_first(data: Tensor | np.ndarray) -> Tensor:
    """uint8 [N, C, H, W] from grey images [N, H, W], or colour ones with the channels last or first."""
    images = torch.as_tensor(data)
    if images.ndim == 3:
        return images.unsqueeze(1)
    return images.permute(0, 3, 1, 2).contiguous() if images.shape[-1] == 3 else images
