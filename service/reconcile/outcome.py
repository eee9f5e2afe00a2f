"""How an attempt ended: from Ray's status, the driver's exit code and the job's result.json."""

from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, replace
from typing import Any, Literal

from ray.job_submission import JobDetails, JobStatus

from jobs.client.job_files import JobFiles
from jobs.errors import BAD_INPUT, BUSY, EXIT_CODES
from jobs.run_dir.result import CAUSES, Cause
from jobs.spec.masking import Mask, masked_result

Kind = Literal["succeeded", "failed", "halted", "stopped", "lost"]
FailureCause = Cause | Literal["bad_spec", "elsewhere", "driver_lost"]
"""Those of result.json, and those that leave none: the driver refused the spec (exit code 2), another process
trains the job (exit code 4), the driver or its node died."""

RESTARTED: frozenset[FailureCause] = frozenset({"cluster", "elsewhere", "driver_lost"})
"""The job itself did nothing wrong: it is started again."""

KILLED = frozenset({-9, -15, 137, 143})
"""Exit codes of a driver that was ended from outside."""

_LONGEST_REASON = 300


@dataclass(frozen=True, slots=True)
class AttemptOutcome:
    """``lost`` is no end of the job: it continues in another attempt."""

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
) -> AttemptOutcome:
    """How an attempt ended.

    Args:
        details: Ray's record of the submission; None if Ray has none.
        files: those of the job, if they can be read here.
        before: ``files.marks()`` when the attempt started: an unchanged result is that of an earlier attempt.
        stopping: whether the job was asked to stop.
        log_end: the last lines that it printed, for the reason only.
    """
    old = (None, (before or {}).get("result"))  # a run removes the result.json of the one before
    result = None
    if files is not None and files.marks().get("result") not in old:
        with suppress(OSError):  # what a job leaves there decides no other job
            result = files.result()
    code = None if details is None else details.driver_exit_code
    error = str((result or {}).get("error") or "")
    status = (result or {}).get("status")
    if status in ("succeeded", "halted") and (details is None or code in (None, 0, EXIT_CODES[status])):
        return AttemptOutcome(status, error, EXIT_CODES[status], result)
    if details is not None and details.status == JobStatus.SUCCEEDED:
        return AttemptOutcome("succeeded", "", 0, result)
    if stopping or (details is not None and details.status == JobStatus.STOPPED):
        return AttemptOutcome("stopped", "was asked to stop", code, result)
    if details is None:
        return AttemptOutcome("lost", "Ray's head died or was restarted and lost it", None, result)
    if code == EXIT_CODES["halted"]:
        return AttemptOutcome("halted", error or "halted by the guard", code, result)
    cause = cause_of(code, result)
    if status == "stopped" and cause == "job":
        return AttemptOutcome("stopped", error or "stopped", code, result)
    kind: Kind = "lost" if cause in RESTARTED else "failed"
    return AttemptOutcome(kind, _reason(details, cause, error, log_end), code, result)


def without_secrets(
    outcome: AttemptOutcome, spec: Mapping[str, Any] | None, env: Mapping[str, str]
) -> AttemptOutcome:
    """As it is stored, shown and sent: a job's error may quote a URL or a command line with its secrets."""
    result = None if outcome.result is None else masked_result(outcome.result, spec, env)
    return replace(outcome, reason=Mask(env, spec).text(outcome.reason), result=result)


def cause_of(code: int | None, result: Mapping[str, Any] | None) -> FailureCause:
    """Why an attempt failed. The exit code comes first: it is known even where the job wrote no result."""
    if code == BAD_INPUT:
        return "bad_spec"
    if code == BUSY:
        return "elsewhere"
    if code is None or code in KILLED:
        return "driver_lost"
    cause = (result or {}).get("cause")  # the job may have written anything
    return cause if cause in CAUSES else "job"


def _reason(details: JobDetails, cause: FailureCause, error: str, log_end: str) -> str:
    last_line = log_end.strip().rpartition("\n")[2].strip()[:_LONGEST_REASON]
    if cause == "driver_lost":
        killed = details.driver_exit_code is not None
        return "its driver was killed" if killed else "its driver or the node that ran it died"
    if cause in ("bad_spec", "elsewhere"):
        return last_line or ("the spec cannot be run" if cause == "bad_spec" else "another process trains it")
    return error or last_line or (details.message or "").strip()[:_LONGEST_REASON]
