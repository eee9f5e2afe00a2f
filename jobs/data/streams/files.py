"""The files of a folder, on a disk or behind a URL, by split."""

from __future__ import annotations

import re
from functools import lru_cache
from pathlib import Path
from typing import NamedTuple

import pyarrow as pa
from pyarrow import fs

from jobs.data.errors import DataError
from jobs.data.tables import HELD_OUT, TRAIN
from jobs.run_dir.remote_storage import file_system
from jobs.run_dir.storage import shown
from jobs.run_dir.strays import hidden

_WORDS = re.compile(r"[^a-z]+")


class File(NamedTuple):
    """A file, by its path in the file system of a folder or URL."""

    root: str
    path: str

    @property
    def kind(self) -> str:
        """The ending of its name."""
        return "." + self.path.lower().rpartition(".")[2]


class Splits(NamedTuple):
    """The files for training and for evaluation, in the order of their names, with the size of each in bytes.

    Attributes:
        train: size by file.
        test: the same of the held-out files; empty where no name says that some are.
    """

    train: dict[File, int]
    test: dict[File, int]


def find_files(root: str, endings: tuple[str, ...], field: str = "data.root") -> Splits:
    """The files below ``root``, or the one that it is; one with ``val`` or ``test`` in its path is held out.

    Args:
        root: a path or URL.
        endings: of their names.
        field: of the spec, for messages.

    Raises:
        DataError: there is no such place, or no file with one of the endings.
    """
    try:
        system, path = _system(root)
        base = system.get_file_info(path)
        if base.type == fs.FileType.NotFound:
            raise ValueError("there is no such file or folder")
        below = fs.FileSelector(path, recursive=True)
        found = [base] if base.type == fs.FileType.File else system.get_file_info(below)
    except (OSError, ImportError, ValueError, pa.ArrowException) as error:
        raise DataError(f"{field} = {shown(root)}: {' '.join(str(error).split())}") from None
    start = 0 if base.type == fs.FileType.File else len(path) + 1
    sizes = {
        info.path: int(info.size)
        for info in sorted(found, key=lambda info: info.path)
        if info.type == fs.FileType.File
        and info.path.lower().endswith(endings)
        and not any(map(hidden, info.path[start:].split("/")))
    }
    if not sizes:
        kinds = ", ".join(endings)
        raise DataError(f"{field} = {shown(root)}: has no file that a stream is read from ({kinds})")
    found_kinds = sorted({File(root, path).kind for path in sizes})
    if len(found_kinds) > 1:
        several = " and ".join(found_kinds)
        raise DataError(f"{field} = {shown(root)}: has {several} files: give each kind a folder of its own")
    words = {path: set(_WORDS.split(path[start:].lower())) for path in sizes}
    held_out = {path for path in sizes if words[path].intersection(HELD_OUT)} if start else set()
    first = next((name for name in HELD_OUT if any(name in words[path] for path in held_out)), "")
    named = {path for path in sizes if words[path].intersection(TRAIN)} - held_out if start else set()
    train = named or set(sizes) - held_out
    if not train:
        raise DataError(f"{field} = {shown(root)}: all files are named as held-out data: name some train-*")
    chosen = [path for path in held_out if first in words[path]]
    return Splits(
        {File(root, path): sizes[path] for path in sorted(train)},
        {File(root, path): sizes[path] for path in sorted(chosen)},
    )


def open_file(file: File) -> pa.NativeFile:
    """Opens a file for reading at any place."""
    return _system(file.root)[0].open_input_file(file.path)


@lru_cache(8)
def _system(root: str) -> tuple[fs.FileSystem, str]:
    """Kept, since to find the region of a bucket takes a while."""
    return file_system(root) if "://" in root else (fs.LocalFileSystem(), str(Path(root).expanduser()))
