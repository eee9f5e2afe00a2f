"""How a job is handed to Ray Jobs: its command line, its environment, and where it says its files lie."""

from __future__ import annotations

import json
import os
import shlex
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from jobs.files import read_json, write_json_atomic
from jobs.spec import JobSpec

SPEC_VARIABLE = "GRADGUARD_SPEC"
MARK = "gradguard"
SUPERVISED = "gradguard-supervised"
NOTES = ".submissions"
RESERVED = ("GRADGUARD_", "RAY_", "TORCH_PROCESS_GROUP_")
_STOP_GRACEFULLY = {"RAY_JOB_STOP_SIGNAL": "SIGINT", "RAY_JOB_STOP_WAIT_TIME_S": "20"}


def entrypoint(*, resume: bool = False) -> str:
    """The command line, quoted for the shell that Ray runs it in."""
    return shlex.join(["python", "-m", "jobs.train", "--from-environment", *(["--resume"] if resume else [])])


def runtime_env(
    spec: JobSpec, *, working_dir: str | Path | None = None, env: Mapping[str, str] | None = None
) -> dict[str, Any]:
    """Our packages, the spec, and what the user adds; secrets go here and never on a command line."""
    from jobs.cluster import PACKAGE_ROOT, WORKER_DEFAULTS  # imports Ray

    packages = [str(PACKAGE_ROOT / package) for package in ("guard", "jobs")]
    variables = {**(env or {}), **WORKER_DEFAULTS, **_STOP_GRACEFULLY, SPEC_VARIABLE: spec.to_yaml()}
    environment: dict[str, Any] = {"py_modules": packages, "env_vars": variables}
    return {**environment, "working_dir": str(working_dir)} if working_dir else environment


def default_root() -> Path:
    """Below it lies what a submitted job stores under a relative folder."""
    return Path.home() / "gradguard"


def note_folder(spec: JobSpec) -> None:
    """A submitted job leaves a note of where its files lie, since its command line need not tell."""
    from jobs.cluster import JOB_CONFIG_VAR

    submission = _submission_id(os.environ.get(JOB_CONFIG_VAR))
    if submission is None or "/" in submission:
        return
    notes = default_root() / NOTES
    try:
        notes.mkdir(parents=True, exist_ok=True)
        write_json_atomic(notes / f"{submission}.json", {"folder": str(spec.job_dir), "job": spec.name})
    except OSError:
        return  # a home that cannot be written: the job itself says what it misses


def noted_folder(submission_id: str, root: Path | None = None) -> Path | None:
    """Where the files of a submitted job lie, if it has said so on this machine."""
    if "/" in submission_id:
        return None
    note = read_json((root or default_root()) / NOTES / f"{submission_id}.json") or {}
    return Path(note["folder"]) if isinstance(note.get("folder"), str) else None


def _submission_id(job_config: str | None) -> str | None:
    metadata = json.loads(job_config).get("metadata") if job_config else None
    found = (metadata or {}).get("job_submission_id")
    return found if isinstance(found, str) else None
