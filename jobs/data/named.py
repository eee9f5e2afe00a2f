"""Data sets that torchvision knows by name, small enough to be held in memory."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from jobs.data.errors import DataError
from jobs.data.images import ImageData
from jobs.spec.data import DataSpec
from jobs.torchvision_compat import import_torchvision

import_torchvision()
from torchvision import datasets  # noqa: E402

_FLAG = ("train", (True, False), "targets")
_NAME = ("split", ("train", "test"), "labels")
_KINDS: dict[str, tuple[Callable[..., Any], tuple[str, tuple[Any, Any], str]]] = {
    "mnist": (datasets.MNIST, _FLAG),
    "kmnist": (datasets.KMNIST, _FLAG),
    "cifar10": (datasets.CIFAR10, _FLAG),
    "cifar100": (datasets.CIFAR100, _FLAG),
    "usps": (datasets.USPS, _FLAG),
    "svhn": (datasets.SVHN, _NAME),
    "stl10": (datasets.STL10, _NAME),
}
"""Torchvision's class, its argument that chooses the split, the values of that for the training and the test
split, and the attribute with the labels."""


def load_named(config: DataSpec) -> tuple[ImageData, ImageData]:
    """Training and test split of the data set, from ``data.root``; downloads it only where that is allowed.

    Raises:
        DataError: it is not there, is damaged, or cannot be downloaded.
    """
    root = Path(config.root or "").expanduser()
    return _load(config, root, 0), _load(config, root, 1)


def _load(config: DataSpec, root: Path, split: int) -> ImageData:
    name = config.dataset
    make, (argument, splits, labelled) = _KINDS[name]
    try:
        found = make(str(root), **{argument: splits[split]}, download=config.download)
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
    labels = torch.as_tensor(np.asarray(getattr(found, labelled))).long()
    classes = tuple(getattr(found, "classes", ())) or tuple(map(str, range(int(labels.max()) + 1)))
    return ImageData(_channels_first(found.data), labels, classes, name)


def _channels_first(data: Tensor | np.ndarray) -> Tensor:
    """uint8 [N, C, H, W] from grey images [N, H, W], or colour ones with the channels last or first."""
    images = torch.as_tensor(data)
    if images.ndim == 3:
        return images.unsqueeze(1)
    return images.permute(0, 3, 1, 2).contiguous() if images.shape[-1] == 3 else images
