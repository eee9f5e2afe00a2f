"""result.json: how a job ended."""

from __future__ import annotations

import importlib.metadata
import platform
from typing import Any

from jobs.failures import CAUSES as CAUSES
from jobs.failures import Cause as Cause
from jobs.run_dir.paths import REPORT
from jobs.spec.job_spec import JobSpec

MOVING = "moving"
"""Status of a training that continues elsewhere; never that of a job."""

COUNTS = ("steps", "attempts", "anomalies", "incidents", "skips", "rollbacks", "clips", "steps_lost")


def complete(outcome: dict[str, Any], spec: JobSpec, seconds: float, command: str) -> dict[str, Any]:
    """result.json: the figures of the loop, those of the driver, and the command that continues the job.

    ``anomalies`` counts attempts in which anything was wrong, ``incidents`` the entries of the journal.
    """
    finished = outcome["status"] == "succeeded"
    outcome = {name: value for name, value in outcome.items() if name not in ("avoid", "why")}
    return {
        **dict.fromkeys(COUNTS, 0),
        "guard_share": 0.0,
        "metrics": {},
        "checkpoint": None,
        "cause": None,
        "world_size": spec.scale.workers,
        **outcome,
        "seconds": seconds,
        "report": REPORT,
        "resume": None if finished else f"{command} --resume",
        "versions": versions(),
    }


def versions() -> dict[str, str]:
    """What the job ran with."""
    found = {name: _version(name) for name in ("gradguard", "torch", "torchvision", "ray")}
    return {**found, "python": platform.python_version()}


def _version(package: str) -> str:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return "not installed"
