"""The id of a tracker's run, kept beside the run's files so that a restarted job continues it."""

from __future__ import annotations

import re
from pathlib import Path


class RunId:
    """A small file in the folder of the trackers.

    Args:
        folder: of the trackers.
        kind: of the tracker.
        project: in which the run is.
    """

    def __init__(self, folder: Path, kind: str, project: str) -> None:
        self._path = folder / f"{kind}-{re.sub(r'[^A-Za-z0-9_.-]+', '-', project)}.run"

    def read(self) -> str | None:
        """The id; None where there is none yet."""
        return self._path.read_text(encoding="utf-8").strip() or None if self._path.is_file() else None

    def write(self, run: str) -> None:
        """Keeps the id."""
        self._path.parent.mkdir(parents=True, exist_ok=True)
        self._path.write_text(run, encoding="utf-8")
