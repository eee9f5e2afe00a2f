"""The checkpoints of a job: those on disk by their manifests, those that are gone by the history."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from guard.rows import Row, as_int, as_text, stored
from jobs.checkpoints.listing import manifests
from jobs.checkpoints.manifest import Manifest
from jobs.errors import JobError
from jobs.run_dir.open_storage import open_storage
from jobs.run_dir.paths import HISTORY
from jobs.run_dir.reader import RunReader

FATES = {
    "good": "good",
    "written": "candidate",
    "retired": "good; newer ones took its place",
    "suspect": "removed: an anomaly followed it",
    "rolled_back": "removed: the run rolled back beyond it",
    "unconfirmed": "removed: the run ended before it was good",
    "failed": "could not be written",
}
"""What became of a checkpoint, by the last event of its history."""


@dataclass(frozen=True, slots=True)
class Checkpoint(Row):
    """A state on disk, or one that was. `fate` is a key of `FATES`."""

    step: int
    attempt: int | None = None
    fate: str = stored("", key="event")
    created: float | None = stored(None, key="time")
    size: int | None = None

    @property
    def kept(self) -> bool:
        """Whether it is still there."""
        return self.fate in {"good", "written"}


def read_checkpoints(files: RunReader, *, remote: bool = True) -> tuple[Checkpoint, ...]:
    """All checkpoints in the history, and those in the job's folder or under its URL.

    One that is there is described by its manifest; where the storage cannot be read, the history is all; a
    URL is read only if ``remote``.
    """
    found = _history(files.rows(HISTORY))
    place = files.checkpoint_place()
    for m in _on_disk(place, files.below) if remote or isinstance(place, Path) else []:
        fate = "good" if m.health == "good" else "written"
        found[m.step] = Checkpoint(m.step, m.attempt, fate, m.created, m.size)
    return tuple(found[step] for step in sorted(found))


def _history(rows: Iterable[Mapping[str, Any]]) -> dict[int, Checkpoint]:
    """A checkpoint for each step: the later row stands, since a run that was killed comes there again."""
    found: dict[int, Checkpoint] = {}
    for row in rows:
        step, event = as_int(row.get("step")), as_text(row.get("event"))
        if step is None or event not in FATES:
            continue
        before = found.get(step)
        if event in {"written", "failed"} or before is None:
            found[step] = Checkpoint.from_row(row)
        else:
            found[step] = replace(before, fate=event)
    return found


def _on_disk(place: str | Path, below: Path | None) -> list[Manifest]:
    if isinstance(place, Path) and not place.is_dir():
        return []
    try:
        return manifests(open_storage(place, below))[0]
    except (OSError, JobError):
        return []
