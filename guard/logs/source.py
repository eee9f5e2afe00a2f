"""Where a log comes from."""

from __future__ import annotations

import codecs
import io
import sys
import zlib
from collections.abc import Iterator
from functools import cached_property
from itertools import islice
from lzma import LZMAError
from pathlib import Path
from typing import BinaryIO

from guard.logs.log import TraceError
from guard.logs.packed import unpacked

_BINARY = {
    b"PAR1": "a Parquet file: write it as CSV",
    b"PK": "a zip archive or a checkpoint: unpack it, and name the log in it",
    b":W&B": "a file of W&B's own format: wandb sync it, and export the run's history as CSV",
}
_CONTROL = set(range(32)) - set(b"\a\b\t\n\v\f\r\x1b")
_HEAD_BYTES = 4096
_HEAD_LINES = 400


class Source:
    """A file, compressed or not, a folder, or ``-``: standard input. What comes through a pipe, as from
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
        return self._start[at : at + len(magic)] == magic

    @cached_property
    def head(self) -> list[str]:
        """The first lines that are not empty."""
        return list(islice((line for line in self.lines() if line.strip()), _HEAD_LINES))

    def lines(self) -> Iterator[str]:
        """The lines of the text, each with its end; a carriage return, with which progress bars start again,
        ends one too. UTF-16 is what PowerShell writes. Bytes that are not UTF-8 are replaced; zeros
        that a crash or a rotated log leaves at an end of the file are left out.

        Raises:
            TraceError: it is not text, or a damaged archive.
            OSError: the file cannot be opened.
        """
        wide = any(self.starts_with(mark) for mark in (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE))
        if not wide and b"\0" in self._start and (found := self._binary()):
            raise TraceError(self.path, 0, f"{found}: name a log of text")
        encoding = "utf-16" if wide else "utf-8-sig"
        try:
            with io.TextIOWrapper(self.open(), encoding=encoding, errors="replace", newline="") as text:
                for line in text:
                    yield line if wide or "\0" not in line else line.replace("\0", "")
        except (EOFError, zlib.error, LZMAError, OSError) as error:
            if getattr(error, "errno", None) is not None:
                raise
            raise TraceError(self.path, 0, f"a damaged archive: {error}") from error

    def _binary(self) -> str | None:
        """What a file with zeros is; None for a text with zeros at its ends."""
        known = next((what for magic, what in _BINARY.items() if self.starts_with(magic)), None)
        text = self._start.strip(b"\0")
        binary = _CONTROL & set(text) or not (text or self._piped or self.path.is_file())
        return known or ("binary, not text" if binary else None)

    def open(self) -> BinaryIO:
        """The unpacked bytes."""
        return unpacked(self._input if self._piped else self.path)

    @cached_property
    def _start(self) -> bytes:
        """The first unpacked bytes."""
        try:
            with self.open() as file:
                return file.read(_HEAD_BYTES)
        except (EOFError, zlib.error, LZMAError, OSError) as error:
            if getattr(error, "errno", None) is not None:
                raise
            return b""

    @cached_property
    def _input(self) -> bytes:
        return sys.stdin.buffer.read() if self._stdin else self.path.read_bytes()
