"""The files of a job: rows of JSON that grow while it runs, and documents that are replaced whole.

Everything on disk is strict JSON; ``guard.rows`` writes and reads what it cannot hold.
"""

import contextlib
import json
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from guard.rows import strict
from jobs.run_dir.plain_file import open_plain, read_plain

FIRST_BYTES, TAIL_BYTES = 1 << 13, 1 << 18
"""Read from the end of a file for its last rows: first little, then more."""
PIECE = 4 << 20
"""Also the longest line."""

LARGEST_DOCUMENT = 16 << 20


def iter_jsonl(
    path: str | Path, end: int | None = None, *, below: Path | None = None
) -> Iterator[dict[str, Any]]:
    """The rows in the first `end` bytes of a file that may be missing, or cut in the middle of a line.

    A line that is not a JSON object is ignored: it is what a killed writer leaves behind. ``below``: see
    ``open_plain``.
    """
    place = 0
    with contextlib.suppress(FileNotFoundError), open_plain(path, below) as file:
        while line := file.readline(PIECE):
            place += len(line)
            if end is not None and place > end:
                return
            if (row := parse_row(line)) is not None:
                yield row


def read_json(path: str | Path, below: Path | None = None) -> dict[str, Any] | None:
    """One JSON object, or None where there is none (missing, empty, cut). ``below``: see ``open_plain``."""
    try:
        return parse_row(read_plain(path, below, most=LARGEST_DOCUMENT))
    except FileNotFoundError:
        return None


def write_json_atomic(path: str | Path, obj: Mapping[str, Any]) -> None:
    """Replace a JSON document: a reader sees the old one or the new one, never a part."""
    write_text_atomic(path, json.dumps(strict(obj), indent=2, allow_nan=False) + "\n")


def write_text_atomic(path: str | Path, text: str) -> None:
    """Write to a temporary name, fsync, rename, fsync the folder."""
    write_bytes_atomic(path, text.encode("utf-8"))


def write_bytes_atomic(path: str | Path, content: bytes) -> None:
    """As `write_text_atomic`, for bytes."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        write_synced(temporary, content)
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)
    sync(path.parent)


def cut_back(path: str | Path, size: int) -> int:
    """Cuts a file back to ``size`` bytes; the rest is kept in ``<stem>.rolled_back<suffix>``.

    Returns:
        The number of bytes cut; 0 where the file is missing or not longer.
    """
    path = Path(path)
    if not path.exists() or path.stat().st_size <= size:
        return 0
    with path.open("rb+") as file:
        file.seek(size)
        rest = file.read()
        with path.with_name(f"{path.stem}.rolled_back{path.suffix}").open("ab") as removed:
            removed.write(rest)
            removed.flush()
            os.fsync(removed.fileno())
        file.truncate(size)
        os.fsync(file.fileno())
    return len(rest)


def parse_row(line: bytes) -> dict[str, Any] | None:
    """One line of a JSON-lines file as it is stored, None where it is no JSON object."""
    try:
        row: Any = json.loads(line)
    except (ValueError, RecursionError):  # not JSON, cut inside a character, nested without end
        return None
    return row if isinstance(row, dict) else None


def last_rows(path: Path, below: Path | None = None) -> Iterator[dict[str, Any]]:
    """The rows at the end of a file, the last one first; no more is read than is asked for."""
    with contextlib.suppress(OSError), open_plain(path, below) as file:
        end = file.seek(0, os.SEEK_END)
        for reach in (FIRST_BYTES, TAIL_BYTES):
            file.seek(max(0, end - reach))
            lines = file.read(reach).splitlines(keepends=True)
            yield from (row for line in reversed(lines) if (row := parse_row(line)) is not None)


class GrowingRows:
    """A JSON-lines file that grows: each call reads the rows that are new."""

    def __init__(self, path: Path, below: Path | None = None) -> None:
        self._path, self._below, self._inode = path, below, -1
        self.place = 0
        """What was read so far, in bytes."""

    def restarted(self) -> bool:
        """True the first time, and where the file was replaced or cut: it is to be read from its beginning.

        ``rows`` then continues after the last whole line of now.
        """
        try:
            found = self._path.stat()
        except OSError:
            return False
        if found.st_ino == self._inode and found.st_size >= self.place:
            return False
        self._inode, self.place = found.st_ino, _end_of_lines(self._path, found.st_size, self._below)
        return True

    def rows(self) -> list[dict[str, Any]]:
        """The whole rows that are new, at most one piece of the file."""
        whole = read_bytes(self._path, self.place, PIECE, self._below)
        whole = whole[: whole.rfind(b"\n") + 1]
        self.place += len(whole)
        return [row for line in whole.splitlines() if (row := parse_row(line)) is not None]


def read_bytes(path: Path, start: int, length: int, below: Path | None = None) -> bytes:
    """A part of a file; nothing where it cannot be read."""
    try:
        with open_plain(path, below) as file:
            file.seek(start)
            return file.read(length)
    except OSError:
        return b""


def _end_of_lines(path: Path, size: int, below: Path | None) -> int:
    """Where the last whole line before ``size`` ends."""
    while size > 0:
        start = max(0, size - PIECE)
        if (found := read_bytes(path, start, size - start, below).rfind(b"\n")) >= 0:
            return start + found + 1
        size = start
    return 0


def write_synced(path: Path, content: bytes) -> None:
    """Writes a file that is on the disk on return."""
    with path.open("wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())


def sync(path: Path) -> None:
    """Waits until a file, or the names in a folder, are on the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
