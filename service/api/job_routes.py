"""Routes for jobs: submit, list, show, stop, resume, clone, delete."""

import time
from functools import partial
from typing import Annotated

from fastapi import APIRouter, Header, Query, Request, Response
from fastapi import Path as PathParameter
from starlette.concurrency import run_in_threadpool

from jobs.client.errors import Conflict
from jobs.client.models import CloneRequest, JobInfo, JobList, PackageInfo, Status, Submission
from jobs.errors import ENDED
from jobs.spec.errors import SpecError
from jobs.spec.job_spec import JobSpec
from jobs.spec.load import Document
from jobs.spec.override import apply_overrides
from service.api.admission import idempotency_key, row_of
from service.api.archives import check_archive
from service.api.auth import Admin, Reader, Submitter
from service.api.context import Context, Service
from service.api.problems import documented
from service.api.view import details, listed
from service.reconcile.removal import remove_job
from service.store import PENDING, Caller, JobRow, WrongState, entry
from service.store.jobs import IdempotencyKey

COMMON = (400, 401, 403, 408, 413, 422, 429)
router = APIRouter(prefix="/v1", responses=documented(*COMMON))

JobId = Annotated[str, PathParameter(pattern=r"^[A-Za-z0-9][A-Za-z0-9_.\-]{0,127}$")]
Text = Annotated[str | None, Query(pattern=r"^[A-Za-z0-9_.\-]{1,128}$")]
Key = Annotated[str | None, Header(alias="Idempotency-Key", min_length=1, max_length=200)]
ZIP = {
    "requestBody": {
        "required": True,
        "content": {"application/zip": {"schema": {"type": "string", "format": "binary"}}},
    }
}


@router.post("/jobs", status_code=201, responses=documented(409))
def submit(
    asked: Submission, http: Request, response: Response, service: Service, caller: Submitter, key: Key = None
) -> JobInfo:
    """Submit a job. Requests with the same Idempotency-Key and content create one job."""
    return _add(service, caller, asked, idempotency_key(key, http.url.path, caller, asked), response)


@router.get("/jobs")
def list_jobs(
    service: Service,
    _: Reader,
    status: Annotated[list[Status], Query()] = [],  # noqa: B006 - FastAPI copies it
    name: Text = None,
    tag: Text = None,
    cursor: Annotated[str | None, Query(max_length=400, pattern=r"^[A-Za-z0-9_\-=]+$")] = None,
    limit: Annotated[int, Query(ge=1, le=500)] = 50,
) -> JobList:
    """List jobs, newest first, in pages."""
    page = service.store.page(states=status, name=name, tag=tag, cursor=cursor, limit=limit)
    return JobList(jobs=listed(service, page.jobs), next_cursor=page.next_cursor)


@router.get("/jobs/{job_id}", responses=documented(404))
def get(job_id: JobId, service: Service, _: Reader) -> JobInfo:
    """Everything known of a job; secrets are masked."""
    return _details(service, job_id)


@router.post("/jobs/{job_id}/stop", status_code=202, responses=documented(404, 409))
def stop(job_id: JobId, service: Service, caller: Submitter) -> JobInfo:
    """Ask a job to save its state and end. An ended job does not change."""

    def edit(job: JobRow) -> str | None:
        if job.state in ENDED or job.state == "stopping":
            return None
        job.reason = f"{caller.name} asked it to stop"
        if job.state in PENDING:
            job.state, job.ended = "stopped", time.time()
        else:
            job.state = "stopping"
        return f"{job.state}: {job.reason}"

    service.store.change(job_id, edit, audit=lambda: entry(caller, "stop", job_id))
    return _details(service, job_id)


@router.post("/jobs/{job_id}/checkpoint", status_code=202, responses=documented(404, 409, 503))
def checkpoint(job_id: JobId, service: Service, caller: Submitter) -> JobInfo:
    """Ask a running job to save a checkpoint now."""
    job = service.store.get(job_id)
    if job.state != "running" or service.ray is None:
        raise WrongState(f"{job_id} is {job.state}: only a running job saves a checkpoint")
    try:
        service.ray.checkpoint(str((job.spec or {}).get("name", job_id)) if job.adopted else job_id)
    except Conflict as error:
        raise WrongState(str(error)) from error
    service.store.note(entry(caller, "checkpoint", job_id))
    return _details(service, job_id)


@router.post("/jobs/{job_id}/resume", status_code=202, responses=documented(404, 409))
def resume(job_id: JobId, service: Service, caller: Submitter) -> JobInfo:
    """Continue an ended job from its last good checkpoint; restarts count from 0 again."""

    def edit(job: JobRow) -> str | None:
        if job.state not in ENDED:
            raise WrongState(f"{job_id} is {job.state}: only a job that has ended can be resumed")
        if job.state == "succeeded":
            raise WrongState(f"{job_id} has succeeded: clone it to train it again")
        if job.spec is None:
            raise WrongState(f"the spec of {job_id} is not known here: submit it again with --resume")
        job.state, job.resume, job.restarts, job.not_before = "queued", True, 0, 0.0
        job.ended, job.exit_code, job.result = None, None, None
        job.reason = f"resumed by {caller.name}"
        return f"queued: {job.reason}"

    audit = partial(entry, caller, "resume", job_id)
    service.store.change(job_id, edit, audit=audit, quota=caller.quota)
    return _details(service, job_id)


@router.post("/jobs/{job_id}/clone", status_code=201, responses=documented(404, 409))
def clone(
    job_id: JobId,
    changes: CloneRequest,
    http: Request,
    response: Response,
    service: Service,
    caller: Submitter,
    key: Key = None,
) -> JobInfo:
    """Submit a copy of a job, with changes of its spec."""
    job = service.store.get(job_id)
    if job.spec is None:
        raise WrongState(f"the spec of {job_id} is not known here: it cannot be cloned")
    document = Document({**job.spec, "name": job.name})
    if problems := apply_overrides(document, changes.set, JobSpec):
        raise SpecError(problems)
    asked = Submission(
        spec=document.data,
        priority=job.priority if changes.priority is None else changes.priority,
        max_restarts=job.max_restarts if changes.max_restarts is None else changes.max_restarts,
        env=dict(job.env),
        working_dir=job.working_dir,
    )
    return _add(service, caller, asked, idempotency_key(key, http.url.path, caller, changes), response)


@router.delete("/jobs/{job_id}", status_code=204, responses=documented(404, 409))
def delete(job_id: JobId, service: Service, caller: Admin, files: bool = False) -> Response:
    """Delete an ended job; with ``files`` its folder too, checkpoints included."""
    remove_job(service.store, service.ray, service.root, job_id, caller, files=files)
    return Response(status_code=204)


@router.post("/packages", status_code=201, openapi_extra=ZIP)
async def upload(http: Request, service: Service, _: Submitter) -> PackageInfo:
    """Upload a working directory as a zip file; a submission names it by its id."""
    content = await http.body()
    files = await run_in_threadpool(check_archive, content, service.limits)
    digest = await run_in_threadpool(service.packages.add, content)
    return PackageInfo(id=digest, size=len(content), files=files)


def _add(
    service: Context, caller: Caller, asked: Submission, request: IdempotencyKey | None, response: Response
) -> JobInfo:
    earlier = service.store.created_by(request) if request else None
    if earlier is None:
        row = row_of(service, caller, asked)
        audit = entry(caller, "submit", row.id, f"name {row.name}")
        earlier, _ = service.store.add(row, request, audit, caller.quota)
    response.headers["Location"] = f"/v1/jobs/{earlier.id}"
    return _details(service, earlier.id)


def _details(service: Context, job_id: str) -> JobInfo:
    return details(service, service.store.get(job_id), service.store.attempts(job_id))
