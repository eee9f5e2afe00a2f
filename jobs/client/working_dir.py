"""A folder packed into a zip file, always the same for the same files."""

from __future__ import annotations

import io
import os
import zipfile
from collections.abc import Iterator
from pathlib import Path

from jobs.client.errors import Refused

EXCLUDED = frozenset({".git", ".venv", "__pycache__", ".mypy_cache", ".pytest_cache", ".ruff_cache"})
LARGEST = 100 << 20
_EPOCH = (1980, 1, 1, 0, 0, 0)


def pack(folder: str | Path) -> bytes:
    """The zip file of a folder, without caches and version control.

    Raises:
        Refused: it is no folder, has a link in it, or is too large.
    """
    root = Path(folder).expanduser()
    if not root.is_dir():
        raise Refused(f"{root} is no folder: give the one that holds your workload")
    buffer, total = io.BytesIO(), 0
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive:
        for path in _files(root):
            total += path.stat().st_size
            if total > LARGEST:
                raise Refused(f"{root} holds more than {LARGEST >> 20} MiB: exclude data and results")
            info = zipfile.ZipInfo(path.relative_to(root).as_posix(), _EPOCH)
            info.external_attr = (path.stat().st_mode & 0o755) << 16
            info.compress_type = zipfile.ZIP_DEFLATED
            archive.writestr(info, path.read_bytes())
    return buffer.getvalue()


def _files(root: Path) -> Iterator[Path]:
    for folder, names, files in os.walk(root):
        names[:] = sorted(name for name in names if name not in EXCLUDED)
        for name in sorted([*files, *(n for n in names if (Path(folder) / n).is_symlink())]):
            path = Path(folder) / name
            if path.is_symlink():
                raise Refused(f"{path} is a link: put the file itself there, or remove it")
            if path.is_file():
                yield path
