"""What a submission must be to be accepted, and the job that it becomes in the store."""

import hashlib
import json
import re
import time
from pathlib import Path

from jobs.client.models import CloneRequest, Submission
from jobs.client.ray_backend import new_id
from jobs.client.submission import RESERVED
from jobs.spec.errors import SpecError, SpecProblem
from jobs.spec.job_spec import JobSpec
from service.api.context import Context
from service.api.problems import Problem
from service.reconcile.capacity import resources_of
from service.store import Caller, JobRow
from service.store.jobs import IdempotencyKey

LARGEST_SPEC = 1 << 17
LARGEST_ENV = 1 << 16
_VARIABLE = re.compile(r"^[A-Za-z_][A-Za-z0-9_]{0,127}$")


def idempotency_key(
    key: str | None, path: str, caller: Caller, asked: Submission | CloneRequest
) -> IdempotencyKey | None:
    """The key that came with a request, bound to its caller and its content; None if none came."""
    if key is None:
        return None
    if not key.isprintable():
        raise Problem(422, "Idempotency-Key: contains characters that are not printable")
    request = b"[%b, %b]" % (json.dumps(path).encode(), _json(asked, sort_keys=True))
    return IdempotencyKey(caller.name, key, hashlib.sha256(request).hexdigest())


def row_of(service: Context, caller: Caller, asked: Submission) -> JobRow:
    """The job that a submission asks for.

    Raises:
        Problem, SpecError: it cannot be run as asked.
    """
    _check_text(asked)
    spec = JobSpec.from_dict(asked.spec)
    spec = spec.model_copy(update={"storage": str(_storage(service, spec))})
    _check_env(asked.env)
    if asked.working_dir is not None and not service.packages.has(asked.working_dir):
        raise Problem(422, f"working_dir: no package {asked.working_dir}: POST it to /v1/packages first")
    job_id, required = new_id(spec.name), resources_of(spec)
    return JobRow(
        id=job_id,
        name=spec.name,
        state="queued",
        reason="submitted",
        priority=asked.priority,
        created=time.time(),
        submitted_by=caller.name,
        max_restarts=asked.max_restarts,
        folder=str(Path(spec.storage) / job_id),
        working_dir=asked.working_dir,
        cpus=required["CPU"],
        gpus=required["GPU"],
        workers=spec.scale.workers,
        tags=list(spec.tags),
        spec=spec.model_dump(mode="json"),
        env=asked.env,
    )


def _check_text(asked: Submission) -> None:
    """Databases refuse NUL, lone surrogates, and numbers that JSON does not have."""
    text = _json(asked, ensure_ascii=False)
    if b"\\u0000" in text:
        raise Problem(422, "the request contains a NUL character")
    if len(text) > LARGEST_SPEC + LARGEST_ENV:
        raise Problem(413, f"a spec has at most {LARGEST_SPEC} bytes")


def _json(asked: Submission | CloneRequest, *, sort_keys: bool = False, ensure_ascii: bool = True) -> bytes:
    try:
        document = asked.model_dump()
        text = json.dumps(document, sort_keys=sort_keys, ensure_ascii=ensure_ascii, allow_nan=False)
        return text.encode()
    except (ValueError, RecursionError):
        message = "the request contains text or numbers that are not valid JSON in UTF-8"
        raise Problem(422, message) from None


def _storage(service: Context, spec: JobSpec) -> Path:
    """The folder of the job's files: the service shows only what is below its own storage folder."""
    resolved = Path(service.root, spec.storage).resolve()
    if not resolved.is_relative_to(service.root) or ".service" in resolved.parts:
        advice = f"must be below the storage folder of the service, {service.root}: write a relative path"
        raise SpecError([SpecProblem("storage", spec.storage, advice)])
    return resolved


def _check_env(env: dict[str, str]) -> None:
    for name in env:
        if not _VARIABLE.match(name):
            raise Problem(422, f"env: {name[:80]!r} is not the name of a variable")
        if name.startswith(RESERVED):
            raise Problem(422, f"env: {name} is set by the service and by Ray: remove it")
    if sum(len(name) + len(value) for name, value in env.items()) > LARGEST_ENV:
        raise Problem(413, f"env has more than {LARGEST_ENV} bytes")
