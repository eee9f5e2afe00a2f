"""Routes for the output of a job: log, events, incidents, metrics, checkpoints, report."""

import asyncio
import json
import os
import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Annotated, Any

from fastapi import APIRouter, Query, Request
from fastapi.responses import HTMLResponse
from starlette.concurrency import run_in_threadpool
from starlette.responses import JSONResponse, Response, StreamingResponse

from guard.records import COLUMNS
from jobs.client.job_files import JobFiles
from jobs.client.models import MOST_AT_ONCE, CheckpointInfo, Event, Series
from service.api.auth import Allowed, Reader, StillAllowed
from service.api.context import Context, Service
from service.api.job_routes import COMMON, JobId
from service.api.problems import STREAM, Problem, documented, text_of
from service.api.view import event, files_of, mask_of, may_read, readable_checkpoints
from service.reconcile.log_spool import log_size, read_log

PIECE = 1 << 16
POLL_S = 0.5
HEARTBEAT_S = 15.0
EVENTS_AT_ONCE = 200
LARGEST = 2**53
SANDBOX = "sandbox; default-src 'none'; style-src 'unsafe-inline'; img-src data:; font-src data:"
"""A job writes its report: a browser shows it and runs nothing in it."""

router = APIRouter(prefix="/v1", responses=documented(*COMMON, 404, 409))
Place = Annotated[int, Query(ge=0, le=LARGEST)]
Column = Annotated[str, Query(pattern=r"^[a-z_]{1,40}$")]


@router.get("/jobs/{job_id}/logs", response_class=StreamingResponse, responses=text_of("text/plain"))
async def logs(
    job_id: JobId,
    service: Service,
    _: Reader,
    allowed: StillAllowed,
    offset: Place = 0,
    limit: Annotated[int | None, Query(ge=1, le=LARGEST)] = None,
    tail: Annotated[
        int | None, Query(ge=1, le=LARGEST, description="Start this many bytes before the end.")
    ] = None,
    follow: bool = False,
) -> Response:
    """The job's output over all attempts, from a byte offset; ``follow`` streams until the job ends."""
    await run_in_threadpool(service.store.get, job_id)
    size = log_size(service.root, job_id)
    start = offset if tail is None else max(0, size - tail)
    end = size if limit is None else min(size, start + limit)
    pieces = (
        _followed(service, allowed, job_id, start) if follow else _between(service.root, job_id, start, end)
    )
    headers = {"X-Log-Size": str(size), "X-Log-Offset": str(start)}
    return StreamingResponse(pieces, media_type="text/plain; charset=utf-8", headers=headers)


@router.get("/jobs/{job_id}/events", response_model=list[Event], responses=text_of(STREAM))
async def events(
    job_id: JobId,
    http: Request,
    service: Service,
    _: Reader,
    allowed: StillAllowed,
    after: Place = 0,
    follow: bool = False,
) -> Response:
    """The events of a job. ``follow``, or Accept: text/event-stream, streams later ones too."""
    await run_in_threadpool(service.store.get, job_id)
    return await _events(service, http, allowed, job_id, after, follow=follow)


@router.get("/events", response_model=list[Event], responses=text_of(STREAM))
async def all_events(
    http: Request,
    service: Service,
    _: Reader,
    allowed: StillAllowed,
    after: Place = 0,
    follow: bool = False,
) -> Response:
    """The events of all jobs."""
    return await _events(service, http, allowed, None, after, follow=follow)


@router.get("/jobs/{job_id}/incidents")
def incidents(
    job_id: JobId,
    service: Service,
    _: Reader,
    start: Annotated[int, Query(ge=-1, le=LARGEST, description="-1: the newest ones.")] = 0,
    limit: Annotated[int, Query(ge=1, le=MOST_AT_ONCE)] = MOST_AT_ONCE,
) -> list[dict[str, Any]]:
    """The incidents that the guard handled, with their evidence, the oldest first; a page of them."""
    job = service.store.get(job_id)
    files = files_of(service, job)
    rows = [] if files is None else files.incident_rows(start=start, limit=limit)
    return list(map(mask_of(job).document, rows))


@router.get("/jobs/{job_id}/metrics")
def metrics(
    job_id: JobId,
    service: Service,
    _: Reader,
    column: Annotated[list[Column], Query(max_length=40)] = list(COLUMNS),  # noqa: B006 - FastAPI copies it
    after_attempt: Annotated[int, Query(ge=-1, le=LARGEST)] = -1,
    points: Annotated[int, Query(ge=1, le=20_000)] = 2000,
) -> Series:
    """Metrics over the attempts, thinned out; steps that were not ordinary always stay."""
    files = _files(service, job_id) or JobFiles(Path(os.devnull))
    return files.metrics(column, after_attempt=after_attempt, points=points)


@router.get("/jobs/{job_id}/checkpoints")
def checkpoints(job_id: JobId, service: Service, _: Reader) -> list[CheckpointInfo]:
    """The checkpoints of a job, oldest first."""
    found, problem = readable_checkpoints(service, service.store.get(job_id))
    if problem:
        raise Problem(404, problem)
    return found


@router.get("/jobs/{job_id}/report", response_class=HTMLResponse)
def report(job_id: JobId, service: Service, _: Reader) -> HTMLResponse:
    """The report, rendered from the job's files as they are now."""
    job = service.store.get(job_id)
    files = files_of(service, job)
    if files is None or not files.exists():
        raise Problem(404, f"{job_id} has recorded nothing yet, or not below the service's storage folder")
    text = files.report(remote=may_read(service.checkpoint_urls, files.checkpoint_place()), env=job.env)
    page = mask_of(job)(text.encode("utf-8", "replace"))
    return HTMLResponse(page, headers={"Content-Security-Policy": SANDBOX})


async def _events(
    service: Context, http: Request, allowed: Allowed, job: str | None, after: int, *, follow: bool
) -> Response:
    last = http.headers.get("last-event-id", "")
    after = int(last) if last.isascii() and last.isdigit() and len(last) < 16 else after
    if follow or STREAM in http.headers.get("accept", ""):
        return StreamingResponse(_streamed(service, allowed, job, after), media_type=STREAM)
    rows = await run_in_threadpool(service.store.events, job, after=after, limit=EVENTS_AT_ONCE)
    return JSONResponse([event(row).model_dump() for row in rows])


async def _streamed(service: Context, allowed: Allowed, job_id: str | None, after: int) -> AsyncIterator[str]:
    """Ends with the job or the validity of the token, or after ``follow_s``; the client then reconnects."""
    until, quiet_since = time.monotonic() + service.limits.follow_s, time.monotonic()
    yield ": begin\n\n"
    while time.monotonic() < until and await allowed():
        over = job_id is not None and await run_in_threadpool(service.ended, job_id)
        rows = await run_in_threadpool(service.store.events, job_id, after=after, limit=EVENTS_AT_ONCE)
        for row in rows:
            after = row.seq
            text = json.dumps(event(row).model_dump(), allow_nan=False)
            yield f"id: {row.seq}\nevent: {row.kind}\ndata: {text}\n\n"
        if rows:
            quiet_since = time.monotonic()
            continue
        if over:
            return
        if time.monotonic() - quiet_since > HEARTBEAT_S:
            quiet_since = time.monotonic()
            yield ": still here\n\n"
        await asyncio.sleep(POLL_S)


async def _between(root: Path, job_id: str, start: int, end: int) -> AsyncIterator[bytes]:
    while start < end:
        part = await run_in_threadpool(read_log, root, job_id, start, min(PIECE, end - start))
        if not part:
            return
        start += len(part)
        yield part


async def _followed(service: Context, allowed: Allowed, job_id: str, start: int) -> AsyncIterator[bytes]:
    """Read piece by piece, as fast as the client receives: a slow client costs no memory."""
    until = time.monotonic() + service.limits.follow_s
    while time.monotonic() < until and await allowed():
        over = await run_in_threadpool(service.ended, job_id)
        if piece := await run_in_threadpool(read_log, service.root, job_id, start, PIECE):
            start += len(piece)
            yield piece
        elif over:
            return
        else:
            await asyncio.sleep(POLL_S)


def _files(service: Context, job_id: str) -> JobFiles | None:
    return files_of(service, service.store.get(job_id))
