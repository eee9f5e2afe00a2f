"""How a job is submitted to Ray Jobs: command line, environment, and the note of where its files are."""

from __future__ import annotations

import hashlib
import json
import os
import re
import shlex
import time
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from jobs.run_dir.jsonl import read_json, write_bytes_atomic, write_json_atomic
from jobs.run_dir.plain_file import read_plain
from jobs.spec.job_spec import JobSpec

SPEC_VARIABLE = "GRADGUARD_SPEC"
MARK = "gradguard"
SUPERVISED = "gradguard-supervised"
NOTES = ".submissions"
LARGEST_KEPT = 20 << 20
KEPT_S = 7 * 86_400.0
"""How large a working directory is kept beside its job's note, packed, and how long."""

RESERVED = ("GRADGUARD_", "RAY_", "TORCH_PROCESS_GROUP_")
_PACKAGE = re.compile(r"[0-9a-f]{64}\.zip")
_STOP_GRACEFULLY = {"RAY_JOB_STOP_SIGNAL": "SIGINT", "RAY_JOB_STOP_WAIT_TIME_S": "20"}


def entrypoint(*, resume: bool = False) -> str:
    """The command line, quoted for the shell that Ray runs it in.

    ``-P``: a ``jobs.py`` or ``guard.py`` in the shipped folder must not hide our packages.
    """
    options = ["--resume"] if resume else []
    return shlex.join(["python", "-P", "-m", "jobs.train", "--from-environment", *options])


def runtime_env(
    spec: JobSpec, *, working_dir: str | Path | None = None, env: Mapping[str, str] | None = None
) -> dict[str, Any]:
    """Our packages, the spec, and what the user adds; secrets go here and never on a command line."""
    from jobs.cluster.session import CODE_PACKAGES, WORKER_DEFAULTS  # imports Ray

    variables = {**(env or {}), **WORKER_DEFAULTS, **_STOP_GRACEFULLY, SPEC_VARIABLE: spec.to_yaml()}
    environment: dict[str, Any] = {"py_modules": CODE_PACKAGES, "env_vars": variables}
    return {**environment, "working_dir": str(working_dir)} if working_dir else environment


def default_root() -> Path:
    """The folder to which the relative ``storage`` of a submitted job is relative."""
    return Path.home() / "gradguard"


def note_folder(spec: JobSpec) -> None:
    """A submitted job leaves a note of where its files are, since its command line need not have it.

    If no service supervises it, the note has its spec and its working directory too: one that adopts it
    can then start it again, even after the head that it was submitted to is gone.
    """
    from jobs.cluster.session import JOB_CONFIG_VAR

    config = json.loads(os.environ.get(JOB_CONFIG_VAR) or "{}")
    submission = (config.get("metadata") or {}).get("job_submission_id")
    if not isinstance(submission, str) or "/" in submission:
        return
    notes = default_root() / NOTES
    note: dict[str, Any] = {"folder": str(spec.job_dir), "job": spec.name}
    try:
        notes.mkdir(parents=True, exist_ok=True)
        if SUPERVISED not in config["metadata"]:
            note |= {"spec": spec.model_dump(mode="json"), **_working_dir(config, notes)}
        write_json_atomic(notes / f"{submission}.json", note)
    except OSError:
        return  # a home that cannot be written: the job itself reports what it lacks


def noted(submission_id: str, root: Path | None = None) -> dict[str, Any]:
    """The note that a submitted job left on this machine; empty if there is none."""
    if "/" in submission_id:
        return {}
    notes = (root or default_root()) / NOTES
    return read_json(notes / f"{submission_id}.json", notes) or {}


def noted_folder(submission_id: str, root: Path | None = None) -> Path | None:
    """The folder of a submitted job's files, if it left a note on this machine."""
    folder = noted(submission_id, root).get("folder")
    return Path(folder) if isinstance(folder, str) else None


def noted_package(note: Mapping[str, Any], root: Path | None = None) -> bytes | None:
    """The working directory that a note names, as a zip file; None if there is none."""
    name = note.get("working_dir")
    if not isinstance(name, str) or not _PACKAGE.fullmatch(name):
        return None
    notes = (root or default_root()) / NOTES
    try:
        content = read_plain(notes / name, notes, most=LARGEST_KEPT)
    except OSError:
        return None
    return content if f"{hashlib.sha256(content).hexdigest()}.zip" == name else None


def _working_dir(config: Mapping[str, Any], notes: Path) -> dict[str, str]:
    """Keeps what Ray has unpacked for this job; under its digest, so that the same folder is kept once."""
    if not (config.get("runtime_env") or {}).get("working_dir"):
        return {}
    from jobs.client.errors import Refused
    from jobs.client.working_dir import pack

    _sweep(notes)
    try:
        content = pack(Path.cwd())
    except Refused as refused:
        return {"not_kept": str(refused)}
    if len(content) > LARGEST_KEPT:
        return {"not_kept": f"the working directory has more than {LARGEST_KEPT >> 20} MiB"}
    name = f"{hashlib.sha256(content).hexdigest()}.zip"
    write_bytes_atomic(notes / name, content)
    return {"working_dir": name}


def _sweep(notes: Path) -> None:
    for path in notes.glob("*.zip"):
        with suppress(OSError):
            if time.time() - path.stat().st_mtime > KEPT_S:
                path.unlink()
