"""The files below a folder: links followed, each real folder once, hidden ones left out; and what is text."""

from __future__ import annotations

import codecs
import os
from collections.abc import Iterator, Sequence
from pathlib import Path

from jobs.run_dir.strays import IGNORED

_UTF_16 = (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)

TABLES = (".csv", ".tsv", ".parquet", ".jsonl", ".ndjson", ".json", ".arrow")
"""Of files that ``jobs.data.tables`` reads; ``.gz`` may follow."""


def files_below(folder: Path, *, ignored: Sequence[str] = IGNORED, within: Path | None = None) -> list[Path]:
    """All files that are not hidden, in an order that no file system changes; links that lead nowhere too,
    so that whoever reads them names them.

    Args:
        folder: where to look.
        ignored: names of folders to leave out.
        within: a linked folder inside of it is not followed, since it is found at its own place; ``folder``
            if None.
    """
    home = (within or folder).resolve()
    found = [Path(parent, name) for parent, names in _walk(folder, home, ignored) for name in names]
    return sorted(
        (file for file in found if file.is_file() or leads_nowhere(file)), key=lambda file: file.parts
    )


def why_no_text(content: bytes) -> str | None:
    """What is wrong with a text in UTF-8; None if it is one."""
    if content.startswith(_UTF_16):
        return "it is UTF-16: save it as UTF-8"
    if b"\0" in content:
        return "it has zero bytes, as UTF-16 and binary files do"
    try:
        content.decode("utf-8")
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1
        byte = f"byte {error.start} (0x{content[error.start]:02x}, in line {line})"
        return f"{byte} is not UTF-8: save it as UTF-8"
    return None


def leads_nowhere(path: Path) -> bool:
    """Whether it is a link whose target is not there."""
    return path.is_symlink() and not path.exists()


def _walk(folder: Path, home: Path, ignored: Sequence[str]) -> Iterator[tuple[str, list[str]]]:
    """Each folder with the names of its files; linked folders outside of ``home`` once."""
    linked: set[Path] = set()
    for parent, folders, names in os.walk(folder, followlinks=True):
        folders[:] = [
            name
            for name in sorted(folders)
            if not name.startswith(".") and name not in ignored and _is_new(Path(parent, name), home, linked)
        ]
        yield parent, [name for name in names if not name.startswith(".")]


def _is_new(folder: Path, home: Path, linked: set[Path]) -> bool:
    if not folder.is_symlink():
        return True
    real = folder.resolve()
    if real.is_relative_to(home) or home.is_relative_to(real) or any(real.is_relative_to(p) for p in linked):
        return False
    linked.add(real)
    return True
