"""Where a log comes from."""

from __future__ import annotations

import codecs
import gzip
import io
import sys
import zlib
from collections.abc import Iterator
from functools import cached_property
from itertools import islice
from pathlib import Path
from typing import BinaryIO

from guard.logs.log import TraceError

_GZIP_MAGIC = b"\x1f\x8b"
_HEAD_LINES = 400


class Source:
    """A file, gzipped or not, a folder, or ``-``: standard input. What comes through a pipe, as from
    ``<(zcat log)`` too, is kept, to be read several times.
    """

    def __init__(self, path: str | Path) -> None:
        self._stdin = str(path) == "-"
        self.path = Path("standard input" if self._stdin else path)
        self._piped = self._stdin or self.path.is_fifo()

    @property
    def is_folder(self) -> bool:
        return not self._piped and self.path.is_dir()

    def starts_with(self, magic: bytes, at: int = 0) -> bool:
        """Whether the unpacked data have these bytes there."""
        try:
            with self.open() as file:
                return file.read(at + len(magic))[at:] == magic
        except (EOFError, zlib.error, gzip.BadGzipFile):
            return False

    @cached_property
    def head(self) -> list[str]:
        """The first lines that are not empty."""
        return list(islice((line for line in self.lines() if line.strip()), _HEAD_LINES))

    def lines(self) -> Iterator[str]:
        """The lines of the text, each with its end; CRLF is kept. UTF-16 is what PowerShell writes.

        Raises:
            TraceError: it is not text, or a damaged archive.
            OSError: the file cannot be opened.
        """
        wide = any(self.starts_with(mark) for mark in (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE))
        with io.TextIOWrapper(self.open(), encoding="utf-16" if wide else "utf-8-sig", newline="") as text:
            try:
                yield from text
            except (UnicodeDecodeError, EOFError, zlib.error, gzip.BadGzipFile) as error:
                raise TraceError(self.path, 0, f"not readable as text: {error}") from error

    def open(self) -> BinaryIO:
        """The unpacked bytes."""
        with self._packed() as file:
            zipped = file.read(len(_GZIP_MAGIC)) == _GZIP_MAGIC
        if not zipped:
            return self._packed()
        return gzip.open(self._packed() if self._piped else self.path)  # type: ignore[return-value]

    def _packed(self) -> BinaryIO:
        return io.BytesIO(self._input) if self._piped else self.path.open("rb")

    @cached_property
    def _input(self) -> bytes:
        return sys.stdin.buffer.read() if self._stdin else self.path.read_bytes()
