"""A folder of images, one sub-folder a class, with or without a split into train and test."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch

from jobs.data.errors import DataError
from jobs.data.images import ImageFiles
from jobs.spec.data import DataSpec
from jobs.torchvision_compat import import_torchvision

import_torchvision()
from torchvision.datasets.folder import IMG_EXTENSIONS, make_dataset  # noqa: E402

_HELD_OUT = ("val", "validation", "valid", "test")


def load_image_folder(config: DataSpec) -> tuple[ImageFiles, ImageFiles]:
    """Training and test split: ``train/`` and ``val/`` or ``test/``, or a part of one folder held out.

    Only names are read here; classes and files are in the order of their names.

    Raises:
        DataError: a folder or its images are not there, or the two splits have different classes.
    """
    root = Path(config.root or "").expanduser()
    if not root.is_dir():
        raise DataError(
            f"data.root = {root}: there is no such folder: set data.root to one with train/<class>/ and "
            f"val/<class>/, or make a small one: python -m jobs.data.to_folder digits {root}"
        )
    train = root / "train"
    if not train.is_dir():
        return _split(_files(root, _class_names(root)), config)
    classes = _class_names(train)
    test = next((root / name for name in _HELD_OUT if (root / name).is_dir()), None)
    if test is None:
        return _split(_files(train, classes), config)
    strange = sorted(set(_class_names(test)) - set(classes))
    if strange:
        raise DataError(f"{test / strange[0]}: this class is not in {train}")
    return _files(train, classes), _files(test, classes, all_classes=False)


def _class_names(folder: Path) -> tuple[str, ...]:
    names = sorted(path.name for path in folder.iterdir() if path.is_dir() and not path.name.startswith("."))
    if not names:
        raise DataError(
            f"{folder}: holds no folders: images of each class belong into {folder.name}/<class>/, "
            "and data.root names the folder above train/"
        )
    return tuple(names)


def _files(folder: Path, classes: tuple[str, ...], *, all_classes: bool = True) -> ImageFiles:
    indices = {name: index for index, name in enumerate(classes)}
    present = {name: index for name, index in indices.items() if all_classes or (folder / name).is_dir()}
    samples = make_dataset(str(folder), present, extensions=IMG_EXTENSIONS, allow_empty=True)
    labels = torch.tensor([label for _, label in samples], dtype=torch.int64)
    empty = [name for name in present if not (labels == indices[name]).any()]
    if empty:
        kinds = ", ".join(IMG_EXTENSIONS)
        raise DataError(f"{folder / empty[0]}: holds no images ({kinds}): add some, or remove the folder")
    paths = tuple(str(Path(path).relative_to(folder)) for path, _ in samples)
    return ImageFiles(folder, paths, labels, classes)


def _split(files: ImageFiles, config: DataSpec) -> tuple[ImageFiles, ImageFiles]:
    """Holds out a share of each class, at least one image of each that has two."""
    held_out = torch.zeros(len(files), dtype=torch.bool)
    for label in range(len(files.classes)):
        rows = (files.labels == label).nonzero().flatten()
        count = min(len(rows) - 1, max(1, round(len(rows) * config.val_share)))
        order = np.random.default_rng([config.split_seed, label]).permutation(len(rows))
        held_out[rows[torch.from_numpy(order[:count])]] = True
    if not held_out.any():
        raise DataError(f"{files.folder}: has one image of each class: there is none to evaluate on")
    return files.chosen((~held_out).nonzero().flatten()), files.chosen(held_out.nonzero().flatten())
