"""result.json: how a job ended."""

from __future__ import annotations

import importlib.metadata
import platform
from typing import Any, Literal, get_args

from jobs.run_dir.paths import REPORT
from jobs.spec.job_spec import JobSpec

Cause = Literal["job", "out_of_memory", "worker_lost", "stalled", "cluster"]
"""Why a job failed. A service starts it again where the cause is ``cluster``.

``job``: its own code raised an error. ``out_of_memory``: a node killed a worker or Ray Train's controller for
its memory. ``worker_lost``: a worker process died. ``stalled``: a worker did not answer within
``scale.stall_timeout_s``. ``cluster``: Ray Train's controller or the head of the cluster died.
"""

CAUSES: tuple[Cause, ...] = get_args(Cause)

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
