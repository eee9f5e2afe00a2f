"""The output of a command whose reader may go away while a job trains."""

from __future__ import annotations

import io
import os
import sys
import threading
from typing import TextIO


def show_any_text() -> None:
    """On standard output escapes what its encoding lacks, as a letter in ASCII or half a character in a
    file's name, as Python does on standard error.
    """
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")


class TerminalOutput:
    """Writes to a stream. When its reader is gone (a pipe that ``head`` closed, a terminal that was closed)
    nothing is raised: ``closed_by_reader`` is set, and what is written from then on is dropped.
    """

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream
        self.closed_by_reader = threading.Event()

    def write(self, text: str) -> int:
        """The number of characters, written or dropped."""
        if not self.closed_by_reader.is_set():
            try:
                return self._stream.write(text)
            except OSError:
                self._drop()
        return len(text)

    def flush(self) -> None:
        """Also detects that the reader is gone."""
        if not self.closed_by_reader.is_set():
            try:
                self._stream.flush()
            except OSError:
                self._drop()

    def __getattr__(self, name: str) -> object:
        """All else is the stream's: ``isatty``, ``fileno``, ``encoding``."""
        return getattr(self._stream, name)

    def _drop(self) -> None:
        """Python flushes its streams when it ends: what they still have goes nowhere, without an error."""
        self.closed_by_reader.set()
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, self._stream.fileno())
        os.close(nowhere)
