"""What a job must be to be taken, and what it becomes in the store."""

from __future__ import annotations

import hashlib
import json
import re
import time
from pathlib import Path
from typing import Any

import yaml

from jobs.client.models import CloneRequest, Submission
from jobs.client.ray_backend import new_id
from jobs.client.submission import RESERVED
from jobs.spec.errors import SpecError, SpecProblem
from jobs.spec.job_spec import JobSpec
from service.api.context import Context
from service.api.problems import Problem
from service.reconcile.capacity import needs
from service.store import Caller, JobRow
from service.store.jobs import IdempotencyKey

LARGEST_SPEC = 1 << 17
LARGEST_ENV = 1 << 16
_VARIABLE = re.compile(r"^[A-Za-z_][A-Za-z0-9_]{0,127}$")


def repeatable(key: str | None, path: str, caller: Caller, body: dict[str, Any]) -> IdempotencyKey | None:
    """What makes a request repeatable, if it came with an idempotency key."""
    if key is None:
        return None
    if not key.isprintable():
        raise Problem(422, "Idempotency-Key: has characters that cannot be printed")
    digest = hashlib.sha256(json.dumps([path, body], sort_keys=True).encode()).hexdigest()
    return IdempotencyKey(caller.name, key, digest)


def row_of(service: Context, caller: Caller, asked: Submission) -> JobRow:
    """The job that a submission asks for.

    Raises:
        Problem, SpecError: it cannot be run as asked.
    """
    check_text(asked)
    spec = JobSpec.from_dict(asked.spec)
    spec = spec.model_copy(update={"storage": str(_storage(service, spec))})
    _check_env(asked.env)
    if asked.working_dir is not None and not service.packages.has(asked.working_dir):
        raise Problem(
            422, f"working_dir: no package {asked.working_dir} was handed in: POST it to /v1/packages"
        )
    job_id, required = new_id(spec.name), needs(spec)
    return JobRow(
        id=job_id,
        name=spec.name,
        state="queued",
        reason="handed in",
        priority=asked.priority,
        created=time.time(),
        submitted_by=caller.name,
        max_restarts=asked.max_restarts,
        folder=str(Path(spec.storage) / job_id),
        working_dir=asked.working_dir,
        cpus=required["CPU"],
        gpus=required["GPU"],
        workers=spec.scale.workers,
        spec=yaml.safe_load(spec.to_yaml()),
        env=asked.env,
    )


def check_text(asked: Submission | CloneRequest) -> None:
    """No NUL, no half characters, no numbers that JSON does not have: databases refuse them."""
    try:
        text = json.dumps(asked.model_dump(), ensure_ascii=False, allow_nan=False)
        size = len(text.encode())
    except (UnicodeEncodeError, ValueError, RecursionError):
        raise Problem(422, "the request holds text or numbers that are not valid JSON in UTF-8") from None
    if "\\u0000" in text:
        raise Problem(422, "the request holds a NUL character")
    if size > LARGEST_SPEC + LARGEST_ENV:
        raise Problem(413, f"a spec has at most {LARGEST_SPEC} bytes")


def _storage(service: Context, spec: JobSpec) -> Path:
    """Where the job's files go: below the storage folder of the service, which is all that it shows."""
    place = Path(service.root, spec.storage)
    resolved = place.resolve()
    if not resolved.is_relative_to(service.root) or ".service" in resolved.parts:
        advice = f"must lie below the storage folder of the service, {service.root}: write a relative path"
        raise SpecError([SpecProblem("storage", spec.storage, advice)])
    return resolved


def _check_env(env: dict[str, str]) -> None:
    for name in env:
        if not _VARIABLE.match(name):
            raise Problem(422, f"env: {name[:80]!r} is no name of a variable")
        if name.startswith(RESERVED):
            raise Problem(422, f"env: {name} is set by the service and by Ray: leave it out")
    if sum(len(name) + len(value) for name, value in env.items()) > LARGEST_ENV:
        raise Problem(413, f"env has more than {LARGEST_ENV} bytes")
