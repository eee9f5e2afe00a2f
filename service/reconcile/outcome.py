"""How an attempt ended, from what Ray says and from what the job left in its folder."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from ray.job_submission import JobDetails, JobStatus

from jobs.client.job_files import JobFiles
from jobs.errors import BAD_INPUT, EXIT_CODES

Kind = Literal["succeeded", "failed", "halted", "stopped", "lost"]
KILLED = frozenset({-9, -15, 137, 143})
"""Exit codes of a driver that somebody or something else ended."""

_NOT_THE_JOB = (
    "the training controller died",
    "the head of the Ray cluster at",
    "Ray's gcs_server",
    "Ray's raylet",
)
_BUSY = "is being trained by another process now"


@dataclass(frozen=True, slots=True)
class Outcome:
    """``lost`` is no end: the job did nothing wrong and can go on elsewhere."""

    kind: Kind
    reason: str
    exit_code: int | None
    result: dict[str, Any] | None


def outcome_of(
    details: JobDetails | None,
    files: JobFiles | None,
    *,
    before: Mapping[str, str] | None,
    stopping: bool,
    log_end: str,
) -> Outcome:
    """What became of an attempt.

    Args:
        details: what Ray says; None if it knows nothing of it any more.
        files: those of the job, if they can be read here.
        before: ``files.marks()`` when the attempt began: a result that was there is that of an earlier one.
        stopping: whether somebody asked it to stop.
        log_end: the last lines of what it printed.
    """
    result = fresh_result(files, before)
    code = None if details is None else details.driver_exit_code
    said = str((result or {}).get("error") or "")
    status = (result or {}).get("status")
    if status in ("succeeded", "halted") and (details is None or code in (None, 0, EXIT_CODES[status])):
        return Outcome(status, said, EXIT_CODES[status], result)
    if details is not None and details.status == JobStatus.SUCCEEDED:
        return Outcome("succeeded", "", 0, result)
    if stopping or (details is not None and details.status == JobStatus.STOPPED):
        return Outcome("stopped", "was asked to stop", code, result)
    if details is None:
        return Outcome("lost", "Ray's head forgot it: it died or was started anew", None, result)
    if code == EXIT_CODES["halted"]:
        return Outcome("halted", said or "halted by the guard", code, result)
    return _failed(details, code, said, log_end, result)


def _failed(
    details: JobDetails, code: int | None, said: str, log_end: str, result: dict[str, Any] | None
) -> Outcome:
    last = log_end.strip().rpartition("\n")[2].strip()[:300]
    if code == BAD_INPUT:
        kind: Kind = "lost" if _BUSY in log_end else "failed"
        return Outcome(kind, last or "the spec cannot be run", code, result)
    if code is None or code in KILLED:
        why = "its driver was killed" if code else "its driver or the node that ran it died"
        return Outcome("lost", why, code, result)
    if any(text in said for text in _NOT_THE_JOB):
        return Outcome("lost", said, code, result)
    if (result or {}).get("status") == "stopped":
        return Outcome("stopped", said or "stopped", code, result)
    return Outcome("failed", said or last or (details.message or "").strip()[:300], code, result)


def fresh_result(files: JobFiles | None, before: Mapping[str, str] | None) -> dict[str, Any] | None:
    """result.json, if this attempt wrote it: a run removes that of the one before when it begins."""
    if files is None:
        return None
    now = files.marks().get("result")
    return None if now is None or now == (before or {}).get("result") else files.result()
