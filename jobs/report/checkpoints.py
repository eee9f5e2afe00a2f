"""The checkpoints of a job, as their manifests tell."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from jobs.checkpoints.folder import manifests
from jobs.checkpoints.manifest import Manifest
from jobs.checkpoints.storage import open_storage
from jobs.errors import JobError
from jobs.folder import CHECKPOINTS
from jobs.spec import JobSpec
from jobs.spec_errors import SpecError


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """A state on disk. `good`: enough clean steps followed it, so the guard returns to it."""

    step: int
    attempt: int
    good: bool
    created: float
    size: int
    metrics: Mapping[str, float]


def read_checkpoints(job_dir: Path, spec: Mapping[str, Any]) -> tuple[Checkpoint, ...]:
    """What lies in the job's folder, or under the URL of its spec; nothing where that cannot be read."""
    place = _place(job_dir, spec)
    if isinstance(place, Path) and not place.is_dir():
        return ()
    try:
        readable, _ = manifests(open_storage(place))
    except (OSError, JobError):
        return ()
    return tuple(_checkpoint(manifest) for manifest in readable)


def _place(job_dir: Path, spec: Mapping[str, Any]) -> str | Path:
    """The folder beside the report, wherever that was moved to; a URL only as a valid spec names it."""
    try:
        place = JobSpec.from_dict(dict(spec)).checkpoint_place
    except (SpecError, TypeError):
        return job_dir / CHECKPOINTS
    return job_dir / CHECKPOINTS if isinstance(place, Path) else place


def _checkpoint(manifest: Manifest) -> Checkpoint:
    return Checkpoint(
        step=manifest.step,
        attempt=manifest.attempt,
        good=manifest.health == "good",
        created=manifest.created,
        size=manifest.size,
        metrics=manifest.metrics,
    )
