"""Streams of server-sent events that feed the page's charts."""

import asyncio
import json
import time
from collections.abc import AsyncIterator, Callable
from typing import Annotated

from fastapi import APIRouter, Query
from starlette.concurrency import run_in_threadpool
from starlette.responses import StreamingResponse

from jobs.client.models import Status
from service.api.auth import Allowed, Reader, StillAllowed
from service.api.context import Context, Service
from service.api.job_routes import COMMON, JobId, Text
from service.api.problems import STREAM, documented, text_of
from service.page.list_stream import ListLive
from service.page.streams import JobLive, Message
from service.store import NoSuchJob

JOB_POLL_S, LIST_POLL_S = 0.5, 1.0
HEARTBEAT_S = 15.0
router = APIRouter(prefix="/v1", responses=documented(*COMMON))


@router.get("/live", response_class=StreamingResponse, responses=text_of(STREAM))
async def list_live(
    service: Service,
    _: Reader,
    allowed: StillAllowed,
    status: Annotated[list[Status], Query()] = [],  # noqa: B006 - FastAPI copies it
    name: Text = None,
    limit: Annotated[int, Query(ge=1, le=500)] = 50,
) -> StreamingResponse:
    """The newest jobs as server-sent events: ``jobs`` has their order, and those that changed, each with
    its progress, accuracy and incidents, and the last stretch of its loss and gradient norm."""
    return _stream(ListLive(service, [*status], name, limit).poll, LIST_POLL_S, service, allowed)


@router.get(
    "/jobs/{job_id}/live", response_class=StreamingResponse, responses=text_of(STREAM) | documented(404)
)
async def job_live(job_id: JobId, service: Service, _: Reader, allowed: StillAllowed) -> StreamingResponse:
    """One job as server-sent events: ``job`` (all that is known), ``history`` and ``steps`` (a list for each
    column of the metrics, which of them are numbers, the attempts that were rolled back, evaluations),
    ``incidents``, ``checkpoints``, ``log`` (text), and ``gone`` where it was deleted. The stream continues
    after the job has ended, since that may be resumed."""
    await run_in_threadpool(service.store.get, job_id)
    return _stream(JobLive(service, job_id).poll, JOB_POLL_S, service, allowed)


def _stream(
    poll: Callable[[], list[Message]], poll_s: float, service: Context, allowed: Allowed
) -> StreamingResponse:
    """Without buffering in a proxy (nginx), which would hold back small pieces."""
    headers = {"X-Accel-Buffering": "no"}
    pieces = _streamed(poll, poll_s, service.limits.follow_s, allowed)
    return StreamingResponse(pieces, media_type=STREAM, headers=headers)


async def _streamed(
    poll: Callable[[], list[Message]], poll_s: float, follow_s: float, allowed: Allowed
) -> AsyncIterator[str]:
    until, quiet_since = time.monotonic() + follow_s, time.monotonic()
    yield ": begin\n\n"
    while time.monotonic() < until and await allowed():
        try:
            messages = await run_in_threadpool(poll)
        except NoSuchJob:
            yield _event("gone", {})
            return
        for kind, data in messages:
            yield _event(kind, data)
        if messages or time.monotonic() - quiet_since > HEARTBEAT_S:
            quiet_since = time.monotonic()
            yield ": still here\n\n"
        await asyncio.sleep(poll_s)


def _event(kind: str, data: object) -> str:
    return f"event: {kind}\ndata: {json.dumps(data, allow_nan=False)}\n\n"
