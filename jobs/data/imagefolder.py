"""A folder of images, one sub-folder a class, with or without a split into train and test."""

from __future__ import annotations

import logging
import os
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from unicodedata import normalize

import torch

from jobs.data.errors import DataError
from jobs.data.files import HELD_OUT, TRAIN, files_below, leads_nowhere, partners, split_name
from jobs.data.images import ImageFiles, hold_out
from jobs.run_dir.strays import hidden
from jobs.spec.data import DataSpec
from jobs.spec.errors import did_you_mean
from jobs.torchvision_compat import import_torchvision

import_torchvision()
from torchvision.datasets.folder import IMG_EXTENSIONS  # noqa: E402

_log = logging.getLogger(__name__)

EXTENSIONS = (*IMG_EXTENSIONS, ".jfif", ".jpe", ".gif", ".avif", ".jp2")
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
        missing = "is a file, no folder" if root.exists() else "there is no such folder"
        raise DataError(
            f"data.root = {root}: {missing}: set data.root to one with train/<class>/ and "
            f"val/<class>/, or make a small one: python -m jobs.data.to_folder digits {root}"
        )
    train, test = _find_splits(root)
    classes = _class_names(train)
    if test is None:
        return hold_out(_files(train, classes), config.val_share, config.split_seed, str(train))
    strange = sorted(set(_class_names(test)) - set(classes))
    if strange:
        raise DataError(_unknown_class(test / strange[0], train, classes))
    return _files(train, classes), _files(test, classes, all_classes=False)


def _unknown_class(folder: Path, train: Path, classes: Sequence[str]) -> str:
    message = f"{folder}: this class is not in {train}"
    same = [name for name in classes if normalize("NFC", name) == normalize("NFC", folder.name)]
    if same:
        return (
            f"{message}: the name there looks the same and has other bytes (Unicode forms NFC and NFD, as "
            "macOS and others write accents): rename one of them"
        )
    question = did_you_mean(folder.name, classes)
    return f"{message}; {question}" if question else message


def _find_splits(root: Path) -> tuple[Path, Path | None]:
    """The folder with the training classes, and the held-out one; ``root`` itself where it has no splits."""
    folders = _folders(root)
    splits = {folder: _split_of(folder) for folder in folders}
    if not any(splits.values()):
        paired = partners(folder.name for folder in folders if not _holds_images(folder))
        splits = {folder: paired.get(folder.name, "") for folder in folders}
    train = [folder for folder, split in splits.items() if split in TRAIN]
    held_out = [folder for name in HELD_OUT for folder, split in splits.items() if split == name]
    others = [folder.name for folder, split in splits.items() if not split]
    if not train and not held_out:
        return root, None
    if len(train) == 1 and (held_out or not others):
        return train[0], _held_out(root, train[0], [*held_out, *(root / name for name in others)])
    names = ", ".join(folder.name for folder in (*train, *held_out))
    reason = f"beside {', '.join(others[:3])}" if others else "without one folder to train on"
    raise DataError(
        f"{root}: is {names} a split or a class, {reason}? Rename it if it is a class; "
        "splits are train/<class>/ and val/<class>/"
    )


def _held_out(root: Path, train: Path, others: list[Path]) -> Path | None:
    """The first of the folders beside the training one; the rest is left out."""
    if not others:
        return None
    if len(others) > 1:
        names = ", ".join(folder.name for folder in others[1 : 1 + _KINDS_NAMED])
        _log.warning("data: %s is held out; left out in %s: %s", others[0].name, root, names)
    if others[0].resolve() == train.resolve():
        raise DataError(f"{others[0]} is a link to {train.name}: nothing would be held out; remove it")
    return others[0]


def _split_of(folder: Path) -> str:
    """The split that a folder is named after; empty if it is none, or holds images itself."""
    name = split_name(folder.name)
    return "" if name.others or _holds_images(folder) else name.split


def _holds_images(folder: Path) -> bool:
    return any(path.is_file() and _is_image(path) for path in folder.iterdir())


def _folders(folder: Path) -> list[Path]:
    with os.scandir(folder) as entries:
        found = [Path(entry) for entry in entries if not hidden(entry.name) and _is_folder(entry)]
    return sorted(found)


def _is_folder(entry: os.DirEntry[str]) -> bool:
    """Without a system call for each of a million files; links in a circle are none."""
    return entry.is_dir(follow_symlinks=False) or (entry.is_symlink() and Path(entry).is_dir())


def _is_image(path: Path) -> bool:
    return path.suffix.lower() in EXTENSIONS and not hidden(path.name)


def _class_names(folder: Path) -> tuple[str, ...]:
    folders = _folders(folder)
    again = [
        path.name for path in folders if path.is_symlink() and _overlap(path.resolve(), folder.resolve())
    ]
    if again:
        _log.warning("data: links into %s itself are left out: %s", folder, ", ".join(again[:_KINDS_NAMED]))
    names = [path.name for path in folders if path.name not in again]
    if not names:
        raise DataError(
            f"{folder}: holds no folders: images of each class belong into {folder.name}/<class>/, "
            "and data.root names the folder above train/"
        )
    inner = [tuple(path.name for path in _folders(folder / name)) for name in names]
    _check_level(folder, names, inner)
    return tuple(names)


def _overlap(one: Path, other: Path) -> bool:
    return one.is_relative_to(other) or other.is_relative_to(one)


def _check_level(folder: Path, names: Sequence[str], inner: Sequence[tuple[str, ...]]) -> None:
    """Whether the folders look like data sets or splits, not classes."""
    splits = partners(inner[0])
    if len(names) > 1 and splits and all(partners(below) == splits for below in inner):
        raise DataError(
            f"{folder}: {', '.join(names[:_KINDS_NAMED])} hold {' and '.join(splits)} each: data.root names "
            f"the folder above those, perhaps {folder / names[0]}"
        )
    if len(names) > 1 and len(inner[0]) > 1 and len(set(inner)) == 1:
        these, same = (", ".join(some[:_KINDS_NAMED]) for some in (names, inner[0]))
        _log.warning("data: %s all hold %s: if they are splits, call them train and val", these, same)


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
    loose = sum(path.is_file() and _is_image(path) for path in folder.iterdir())
    if gone := [path.name for path in folder.iterdir() if leads_nowhere(path)]:
        _log.warning("data: links in %s that lead nowhere: %s", folder, ", ".join(gone[:_KINDS_NAMED]))
    if loose:
        _log.warning("data: images in %s beside the class folders are left out: %d", folder, loose)
    others = Counter(file.suffix.lower() or file.name for file in files if not _is_image(file))
    images = len(files) - others.total()
    _log.info("data: %d images in %d classes in %s", images, classes, folder)
    if others:
        kinds = ", ".join(f"{count} {kind}" for kind, count in others.most_common(_KINDS_NAMED))
        _log.warning("data: %d of %d files in %s are left out: %s", others.total(), len(files), folder, kinds)
