"""The one function that opens a job's file for reading: a job can leave anything under its names."""

from __future__ import annotations

import errno
import os
import stat
from pathlib import Path
from typing import BinaryIO

from jobs.errors import JobError

LARGEST = 8 << 30
"""Bytes of a file that is read below a folder: ten million steps."""


_WHY = {
    errno.ELOOP: "is a link in a circle",
    errno.ENXIO: "is no regular file",  # a socket
    errno.EACCES: "may not be read by this user",
}


class NotAPlainFile(JobError, OSError):
    """Not a plain file, too large, or a link out of the job's folder."""

    def __init__(self, path: str | Path, why: str) -> None:
        super().__init__(f"{path} {why}: it is not read")


def open_plain(path: str | Path, below: Path | None = None, *, most: int = LARGEST) -> BinaryIO:
    """Opens a file for reading; never waits, as a FIFO would make a reader do, and never reads a device.

    Args:
        path: the file.
        below: the real path of a folder. No link out of it is followed, and no file that has another name (a
            hard link) or more than ``most`` bytes is opened: for readers that may read more than the job may.
            None for those with the rights of their caller.
        most: in bytes.

    Raises:
        FileNotFoundError: there is none.
        NotAPlainFile: it is none that may be read.
    """
    real = os.path.realpath(path)
    if below is not None and not is_inside(real, os.fspath(below)):  # a job may replace its folder by a link
        raise NotAPlainFile(path, "leads out of the job's folder")
    descriptor = _opened(real, path)
    try:
        _check(descriptor, path, real, None if below is None else most)
    except BaseException:
        os.close(descriptor)
        raise
    return os.fdopen(descriptor, "rb")


def read_plain(path: str | Path, below: Path | None = None, *, most: int = LARGEST) -> bytes:
    """The content of a file; see ``open_plain``."""
    with open_plain(path, below, most=most) as file:
        return file.read()


def is_inside(real: str, top: str) -> bool:
    """Whether a path without links is a folder or below it."""
    return real == top or real.startswith(f"{top.rstrip(os.sep)}{os.sep}")


def _opened(real: str, path: str | Path) -> int:
    try:
        return os.open(real, os.O_RDONLY | os.O_NONBLOCK | os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NOCTTY)
    except FileNotFoundError:
        raise
    except NotADirectoryError as error:
        raise FileNotFoundError(error.errno, error.strerror, str(path)) from None
    except OSError as error:
        raise NotAPlainFile(
            path, _WHY.get(error.errno or 0, f"cannot be opened ({error.strerror})")
        ) from None


def _check(descriptor: int, path: str | Path, real: str, most: int | None) -> None:
    found = os.fstat(descriptor)
    if stat.S_ISDIR(found.st_mode):
        raise NotAPlainFile(path, "is a folder")
    if not stat.S_ISREG(found.st_mode):
        raise NotAPlainFile(path, "is no regular file")
    if most is None:
        return
    if found.st_nlink > 1:
        raise NotAPlainFile(path, "has another name too (a hard link)")
    if found.st_size > most:
        raise NotAPlainFile(path, f"is larger than {most} bytes")
    opened = Path(f"/proc/self/fd/{descriptor}")
    if opened.is_symlink() and str(opened.readlink()) != real:  # a folder on the way was replaced meanwhile
        raise NotAPlainFile(path, "was replaced while it was opened")
