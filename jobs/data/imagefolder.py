"""A folder of images, one sub-folder a class, with or without a split into train and test."""

from __future__ import annotations

import logging
import re
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import torch

from jobs.data.errors import DataError
from jobs.data.files import files_below, hidden
from jobs.data.images import ImageFiles, hold_out
from jobs.spec.data import DataSpec
from jobs.torchvision_compat import import_torchvision

import_torchvision()
from torchvision.datasets.folder import IMG_EXTENSIONS  # noqa: E402

_log = logging.getLogger(__name__)

EXTENSIONS = (*IMG_EXTENSIONS, ".jfif", ".jpe", ".gif", ".avif", ".jp2")
_TRAIN = ("train", "training")
_HELD_OUT = ("val", "validation", "valid", "dev", "eval", "evaluation", "test", "testing")
_SPLIT = re.compile(rf"({'|'.join((*_TRAIN, *_HELD_OUT))})(?:[ _-]?(?:set|data|images|split))?[ _-]?\d*")
"""A folder that is named after a split: ``Train``, ``test_set``, ``val2017``."""
_KINDS_NAMED = 4


def load_image_folder(config: DataSpec) -> tuple[ImageFiles, ImageFiles]:
    """Training and test split: ``train/`` and ``val/`` or ``test/``, or a part of one folder held out.

    Only names are read here; classes and files are in the order of their names. The names of the splits may
    be spelled in any usual way (``Training``, ``test_set``); such a folder that holds images itself is a
    class.

    Raises:
        DataError: a folder or its images are not there, there is one class only, or the two splits have
            different classes.
    """
    root = Path(config.root or "").expanduser()
    if not root.is_dir():
        raise DataError(
            f"data.root = {root}: there is no such folder: set data.root to one with train/<class>/ and "
            f"val/<class>/, or make a small one: python -m jobs.data.to_folder digits {root}"
        )
    train, test = _find_splits(root)
    classes = _class_names(train)
    if test is None:
        return hold_out(_files(train, classes), config.val_share, config.split_seed, str(train))
    strange = sorted(set(_class_names(test)) - set(classes))
    if strange:
        raise DataError(f"{test / strange[0]}: this class is not in {train}")
    return _files(train, classes), _files(test, classes, all_classes=False)


def _find_splits(root: Path) -> tuple[Path, Path | None]:
    """The folder with the training classes, and the held-out one; ``root`` itself where it has no splits."""
    splits = {folder: _split_of(folder) for folder in _folders(root)}
    train = [folder for folder, split in splits.items() if split in _TRAIN]
    held_out = [folder for name in _HELD_OUT for folder, split in splits.items() if split == name]
    others = [folder.name for folder, split in splits.items() if not split]
    if not train and not held_out:
        return root, None
    if len(train) == 1 and (held_out or not others):
        return train[0], held_out[0] if held_out else None
    names = ", ".join(folder.name for folder in (*train, *held_out))
    reason = f"beside {', '.join(others[:3])}" if others else "without one folder to train on"
    raise DataError(
        f"{root}: is {names} a split or a class, {reason}? Rename it if it is a class; "
        "splits are train/<class>/ and val/<class>/"
    )


def _split_of(folder: Path) -> str:
    """The split that a folder is named after; empty if it is none, or holds images itself."""
    match = _SPLIT.fullmatch(folder.name.lower())
    if match is None or any(path.is_file() and _is_image(path) for path in folder.iterdir()):
        return ""
    return match[1]


def _folders(folder: Path) -> list[Path]:
    return sorted(path for path in folder.iterdir() if path.is_dir() and not hidden(path.name))


def _is_image(path: Path) -> bool:
    return path.suffix.lower() in EXTENSIONS and not hidden(path.name)


def _class_names(folder: Path) -> tuple[str, ...]:
    names = [path.name for path in _folders(folder)]
    if not names:
        raise DataError(
            f"{folder}: holds no folders: images of each class belong into {folder.name}/<class>/, "
            "and data.root names the folder above train/"
        )
    return tuple(names)


def _files(folder: Path, classes: tuple[str, ...], *, all_classes: bool = True) -> ImageFiles:
    present = [name for name in classes if all_classes or (folder / name).is_dir()]
    files = {name: files_below(folder / name, within=folder) for name in present}
    images = {name: [file for file in found if _is_image(file)] for name, found in files.items()}
    empty = [name for name in present if not images[name]]
    if empty:
        kinds = ", ".join(EXTENSIONS)
        raise DataError(f"{folder / empty[0]}: holds no images ({kinds}): add some, or remove the folder")
    if len(classes) == 1:
        raise DataError(
            f"{folder}: there is only one class, {classes[0]}: data.root names the folder that holds one "
            f"folder for each class{_deeper(folder / classes[0])}"
        )
    _report(folder, [file for found in files.values() for file in found], len(present))
    paths = [file for name in present for file in images[name]]
    labels = [classes.index(name) for name in present for _ in images[name]]
    names = tuple(str(path.relative_to(folder)) for path in paths)
    return ImageFiles(folder, names, torch.tensor(labels, dtype=torch.int64), classes)


def _deeper(folder: Path) -> str:
    return f", perhaps {folder}" if _folders(folder) else ""


def _report(folder: Path, files: Sequence[Path], classes: int) -> None:
    """Logs what was found, and warns of files that are left out because of their kind."""
    others = Counter(file.suffix.lower() or file.name for file in files if not _is_image(file))
    images = len(files) - others.total()
    _log.info("data: %d images in %d classes in %s", images, classes, folder)
    if others:
        kinds = ", ".join(f"{count} {kind}" for kind, count in others.most_common(_KINDS_NAMED))
        _log.warning("data: %d of %d files in %s are left out: %s", others.total(), len(files), folder, kinds)
