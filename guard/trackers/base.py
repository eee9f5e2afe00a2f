"""What a tracker has to do."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol

Values = Mapping[str, float]


class Tracker(Protocol):
    """One destination. It is called from one thread, in order; what it raises is counted, and it goes on.

    ``at`` counts attempts: it only grows, while ``step`` goes back with a rollback.
    """

    def open(self, name: str, spec: Mapping[str, Any], folder: Path) -> None:
        """Starts a run of this name with these settings; ``folder`` is for its files."""

    def values(self, at: int, values: Values) -> None:
        """Figures of an attempt."""

    def event(self, at: int, level: str, title: str, text: str) -> None:
        """Something happened; ``level`` is ``info``, ``warning`` or ``error``."""

    def artefact(self, path: Path) -> None:
        """Keeps a copy of a file or a folder."""

    def close(self, status: str) -> None:
        """The run is over: ``succeeded``, ``failed``, ``halted`` or ``stopped``."""
