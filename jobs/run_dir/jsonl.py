"""The files of a job: rows of JSON that grow while it runs, and documents that are replaced whole.

Everything on disk is strict JSON. A float that is not finite is stored as "nan", "inf" or "-inf" and
comes back as a float, except in the fields that hold text (a job may be called `nan`).
"""

import contextlib
import json
import math
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from guard.rows import strict

_NONFINITE = {"nan": math.nan, "inf": math.inf, "-inf": -math.inf}
_NONFINITE_ON_DISK = (b'"nan"', b'"inf"', b'"-inf"')

TEXT_FIELDS = frozenset(
    {
        "action",
        "checkpoint",
        "data",
        "error",
        "job",
        "level",
        "name",
        "outcome",
        "phase",
        "report",
        "resume",
        "samples",
        "signal",
        "source",
        "status",
        "text",
        "type",
        "verdict",
        "versions",
    }
)


def read_jsonl(path: str | Path) -> list[dict[str, Any]]:
    """The rows of a file that may be missing, or that was cut in the middle of a line.

    A line that is not a JSON object is left out: it is what a killed writer leaves behind.
    """
    return list(iter_jsonl(path))


def iter_jsonl(path: str | Path) -> Iterator[dict[str, Any]]:
    """`read_jsonl` row by row, for files that are too long to hold."""
    with contextlib.suppress(FileNotFoundError), Path(path).open("rb") as file:
        for line in file:
            row = parse_row(line)
            if row is not None:
                yield row


def read_json(path: str | Path) -> dict[str, Any] | None:
    """One JSON object, or None where there is none to be read (missing, empty, cut)."""
    try:
        return parse_row(Path(path).read_bytes())
    except FileNotFoundError:
        return None


def write_json_atomic(path: str | Path, obj: Mapping[str, Any]) -> None:
    """Replace a JSON document: a reader sees the old one or the new one, never a part."""
    write_text_atomic(path, json.dumps(strict(obj), indent=2, allow_nan=False) + "\n")


def write_text_atomic(path: str | Path, text: str) -> None:
    """Write to a temporary name, fsync, rename, fsync the folder."""
    write_bytes_atomic(path, text.encode("utf-8"))


def write_bytes_atomic(path: str | Path, content: bytes) -> None:
    """As `write_text_atomic`, for what is no text."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with temporary.open("wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)
    sync(path.parent)


class JsonlWriter:
    """Appends rows to a JSON-lines file; each row is with the operating system when `write` returns.

    Opened on a file whose last line was cut, it starts a new line, so that only the cut row is lost.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        self.path.parent.mkdir(parents=True, exist_ok=True)
        self._file = self.path.open("a", encoding="utf-8", newline="\n", buffering=1)
        if not _ends_with_newline(self.path):
            self._file.write("\n")

    def write(self, row: Mapping[str, Any]) -> None:
        self._file.write(json.dumps(strict(row), allow_nan=False, separators=(",", ":")) + "\n")
        self._file.flush()

    def close(self) -> None:
        self._file.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, tb: TracebackType | None
    ) -> None:
        self.close()


def cut_back(path: str | Path, size: int) -> int:
    """Takes what a file holds beyond ``size`` bytes off; it is kept in ``<stem>.undone<suffix>``.

    Returns:
        The bytes that were taken off; 0 where the file is missing or no longer.
    """
    path = Path(path)
    if not path.exists() or path.stat().st_size <= size:
        return 0
    with path.open("rb+") as file:
        file.seek(size)
        rest = file.read()
        with path.with_name(f"{path.stem}.undone{path.suffix}").open("ab") as undone:
            undone.write(rest)
            undone.flush()
            os.fsync(undone.fileno())
        file.truncate(size)
        os.fsync(file.fileno())
    return len(rest)


def from_strict(value: Any) -> Any:
    """The inverse of `guard.record.strict`; the fields in `TEXT_FIELDS` are left alone."""
    if isinstance(value, str):
        return _NONFINITE.get(value, value)
    if isinstance(value, dict):
        return {key: item if key in TEXT_FIELDS else from_strict(item) for key, item in value.items()}
    if isinstance(value, list):
        return [from_strict(item) for item in value]
    return value


def parse_row(line: bytes) -> dict[str, Any] | None:
    """One line of a JSON-lines file, None where it is no JSON object."""
    try:
        row: Any = json.loads(line)
    except (ValueError, RecursionError):  # not JSON, cut inside a character, nested without end
        return None
    if not isinstance(row, dict):
        return None
    if any(word in line for word in _NONFINITE_ON_DISK):  # rare, and the walk is slower than the parser
        row = from_strict(row)
    return row


def _ends_with_newline(path: Path) -> bool:
    with path.open("rb") as file:
        if file.seek(0, os.SEEK_END) == 0:
            return True
        file.seek(-1, os.SEEK_END)
        return file.read(1) == b"\n"


def sync(path: Path) -> None:
    """Waits until a file, or the names in a folder, are on the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
