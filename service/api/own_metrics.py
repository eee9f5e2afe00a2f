"""The service's own health, for load balancers and Prometheus."""

import time
from collections.abc import Iterable

import anyio
from fastapi import APIRouter, Request
from prometheus_client import CONTENT_TYPE_LATEST, CollectorRegistry, Counter, Histogram, generate_latest
from prometheus_client.core import GaugeMetricFamily, Metric
from prometheus_client.registry import Collector
from sqlalchemy.exc import SQLAlchemyError
from starlette.responses import Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from jobs.client.models import STATUSES
from service.api.auth import Reader
from service.api.context import Context, Service
from service.api.problems import Problem, documented, text_of
from service.store import ACTIVE, PENDING, StoreError

STALLED_S = 60.0
ANSWER_S = 5.0
MOST_JOBS = 200
METHODS = ("GET", "POST", "PUT", "DELETE", "PATCH", "HEAD", "OPTIONS")
router = APIRouter(responses=documented(429))
_TEXT = text_of(CONTENT_TYPE_LATEST.partition(";")[0])


class ServiceMetrics(Collector):
    """Requests, counted as they pass, and jobs, counted at each scrape."""

    def __init__(self, service: Context) -> None:
        self._service = service
        registry = self.registry = CollectorRegistry()
        labels = ["method", "route", "code"]
        self.requests = Counter("gradguard_service_requests", "Requests answered.", labels, registry=registry)
        name = "gradguard_service_request_seconds"
        self.seconds = Histogram(name, "Until the answer started.", ["route"], registry=registry)
        registry.register(self)

    def describe(self) -> Iterable[Metric]:
        """Empty: registration does not query the database."""
        return []

    def collect(self) -> Iterable[Metric]:
        """Jobs by status, whether this service holds the lease, and whether Ray answers."""
        jobs = GaugeMetricFamily("gradguard_service_jobs", "Jobs by status.", labels=["status"])
        counts = self._service.store.counts()
        for status in STATUSES:
            jobs.add_metric([status], counts.get(status, 0))
        yield jobs
        yield from self._active_jobs()
        supervisor = self._service.supervisor
        leading = float(supervisor is not None and supervisor.leading)
        yield GaugeMetricFamily("gradguard_service_leading", "1 for the service that supervises.", leading)
        answers = float(supervisor is not None and supervisor.ray_answers)
        yield GaugeMetricFamily("gradguard_service_ray_up", "1 while Ray answers.", answers)

    def _active_jobs(self) -> Iterable[Metric]:
        """Who owns what, what waits and why: of the first ``MOST_JOBS`` that have not ended."""
        owned = GaugeMetricFamily(
            "gradguard_service_job_info", "1 for a job that has not ended.", labels=["job", "owner", "status"]
        )
        waiting = GaugeMetricFamily(
            "gradguard_service_job_waiting_seconds", "How long it waits.", labels=["job", "owner", "reason"]
        )
        for job in self._service.store.in_states((*PENDING, *ACTIVE))[:MOST_JOBS]:
            owned.add_metric([job.id, job.submitted_by, job.state], 1.0)
            if job.state in PENDING:
                seconds = max(0.0, time.time() - job.created)
                waiting.add_metric([job.id, job.submitted_by, job.reason], seconds)
        yield owned
        yield waiting


class Counted:
    """Middleware around the app that counts requests."""

    def __init__(self, app: ASGIApp, metrics: ServiceMetrics) -> None:
        self._app, self._metrics = app, metrics

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        began, method = time.perf_counter(), scope["method"] if scope["method"] in METHODS else "other"

        async def counting(message: Message) -> None:
            if message["type"] == "http.response.start":
                route = getattr(scope.get("route"), "path", "other")
                self._metrics.requests.labels(method, route, str(message["status"])).inc()
                self._metrics.seconds.labels(route).observe(time.perf_counter() - began)
            await send(message)

        await self._app(scope, receive, counting)


@router.get("/healthz")
async def healthz() -> dict[str, str]:
    """The process answers. Not in a thread: all may wait for a locked database."""
    return {"service": "gradguard", "status": "ok"}


@router.get("/readyz", responses=documented(503))
async def readyz(service: Service) -> dict[str, str]:
    """The database and Ray answer, and the supervisor runs."""
    try:
        with anyio.fail_after(ANSWER_S):
            counts, own = service.store.counts, service.readiness_threads
            await anyio.to_thread.run_sync(counts, limiter=own, abandon_on_cancel=True)
    except (SQLAlchemyError, StoreError, TimeoutError):
        raise Problem(503, "the database does not answer") from None
    supervisor = service.supervisor
    if supervisor is not None and not supervisor.ray_answers:
        raise Problem(503, supervisor.ray_problem or "Ray has not been contacted yet")
    if supervisor is not None and time.monotonic() - supervisor.last_tick > STALLED_S:
        raise Problem(503, "the supervisor is stuck")
    return {"status": "ready"}


@router.get("/metrics", response_class=Response, responses={**documented(401, 403), **_TEXT})
def own_metrics(_: Reader, http: Request) -> Response:
    """The service's own metrics, for Prometheus."""
    return Response(generate_latest(http.app.state.metrics.registry), media_type=CONTENT_TYPE_LATEST)
