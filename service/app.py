"""The HTTP app: routes, limits, errors, OpenAPI."""

from typing import Any

from anyio import CapacityLimiter
from fastapi import FastAPI
from fastapi.openapi.utils import get_openapi

from jobs.run_dir.result import versions
from service.api import artefact_routes, audit_routes, file_routes, job_routes, own_metrics
from service.api.callers import Buckets
from service.api.context import Context
from service.api.limits import Gate
from service.api.own_metrics import Counted, ServiceMetrics
from service.api.problems import ProblemDocument, add_handlers
from service.page import cluster_routes, replay_routes, specs, static_files, stream_routes
from service.page.cluster_routes import Capacities
from service.page.replay_routes import AT_ONCE


def make_app(service: Context, *, loopback: bool = False) -> FastAPI:
    """The HTTP API of a service.

    Args:
        service: the service behind it.
        loopback: whether it listens on loopback: then only loopback names are allowed, which stops DNS
            rebinding.
    """
    app = FastAPI(
        title="GradGuard",
        version=versions()["gradguard"],
        summary="Training jobs: submit, follow, stop, resume.",
        docs_url=None,
        redoc_url=None,
    )
    app.state.context = service
    wrong_tokens = service.limits.wrong_tokens_per_minute
    app.state.wrong_tokens = Buckets(wrong_tokens / 60, wrong_tokens)
    app.state.metrics = ServiceMetrics(service)
    app.state.capacities = Capacities()
    app.state.replays = CapacityLimiter(AT_ONCE)
    api = (job_routes, file_routes, artefact_routes, audit_routes, own_metrics)
    page = (static_files, stream_routes, specs, cluster_routes, replay_routes)
    for room in (*api, *page):
        app.include_router(room.router)
    add_handlers(app)
    app.add_middleware(Gate, limits=service.limits, callers=service.callers, loopback=loopback)
    app.add_middleware(Counted, metrics=app.state.metrics)
    app.openapi = lambda: _described(app)  # type: ignore[method-assign]
    return app


def _described(app: FastAPI) -> dict[str, Any]:
    """OpenAPI, with the problem documents that all endpoints share."""
    if app.openapi_schema is None:
        schema = get_openapi(title=app.title, version=app.version, summary=app.summary, routes=app.routes)
        schemas = schema.setdefault("components", {}).setdefault("schemas", {})
        schemas["ProblemDocument"] = ProblemDocument.model_json_schema()
        app.openapi_schema = schema
    return app.openapi_schema
