"""Errors as problem documents (RFC 9457): each names the problem and the fix."""

from collections.abc import Sequence
from http import HTTPStatus
from typing import Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from pydantic import BaseModel, ConfigDict
from sqlalchemy.exc import OperationalError, SQLAlchemyError
from sqlalchemy.exc import TimeoutError as PoolTimeout
from starlette.exceptions import HTTPException
from starlette.responses import JSONResponse

from jobs.errors import JobError
from jobs.run_dir.plain_file import NotAPlainFile
from jobs.spec.errors import SpecError
from service.reconcile import RayUnavailable
from service.store import KeyReused, NoSuchJob, QuotaExceeded, StoreError, WrongState

MEDIA_TYPE = "application/problem+json"
STREAM = "text/event-stream"
_STATUSES = {
    NotAPlainFile: 409,
    NoSuchJob: 404,
    KeyReused: 409,
    WrongState: 409,
    QuotaExceeded: 403,
    RayUnavailable: 503,
    StoreError: 503,
    OperationalError: 503,
    PoolTimeout: 503,
    JobError: 422,
}


class ProblemDocument(BaseModel):
    """What went wrong."""

    model_config = ConfigDict(use_attribute_docstrings=True)

    type: str = "about:blank"
    title: str
    status: int
    detail: str
    errors: list[str] = []
    """Every problem with its place, where there are several."""


class Problem(Exception):
    """Ends a request with a problem document."""

    def __init__(
        self, status: int, detail: str, *, errors: Sequence[str] = (), headers: dict[str, str] | None = None
    ) -> None:
        super().__init__(detail)
        self.status, self.detail, self.errors, self.headers = status, detail, errors, headers


def answer(problem: Problem) -> JSONResponse:
    document = ProblemDocument(
        title=HTTPStatus(problem.status).phrase,
        status=problem.status,
        detail=encodable(problem.detail),
        errors=[encodable(error) for error in problem.errors],
    )
    return JSONResponse(document.model_dump(), problem.status, headers=problem.headers, media_type=MEDIA_TYPE)


def encodable(text: str) -> str:
    """Without lone surrogates, which a client may have sent and JSON cannot carry."""
    return text.encode("utf-8", "replace").decode()[:4000]


def documented(*statuses: int) -> dict[int | str, dict[str, Any]]:
    """OpenAPI responses with these statuses."""
    content = {MEDIA_TYPE: {"schema": {"$ref": "#/components/schemas/ProblemDocument"}}}
    return {s: {"description": HTTPStatus(s).phrase, "content": content} for s in statuses}


def text_of(media_type: str) -> dict[int | str, dict[str, Any]]:
    """OpenAPI response 200: text of this type; of a stream of events the schema describes each event."""
    fields = {name: {"type": "string"} for name in ("id", "event", "data")}
    schema = {"type": "object", "properties": fields} if media_type == STREAM else {"type": "string"}
    return {200: {"content": {media_type: {"schema": schema}}}}


def add_handlers(app: FastAPI) -> None:
    """Turns exceptions of handlers into problem documents."""

    def handle(_: Request, error: Exception) -> JSONResponse:
        return answer(_problem_of(error))

    for kind in (Problem, RequestValidationError, HTTPException, SpecError, *_STATUSES, Exception):
        app.add_exception_handler(kind, handle)


def _problem_of(error: Exception) -> Problem:
    match error:
        case Problem():
            return error
        case SpecError():
            return Problem(422, str(error), errors=[str(problem) for problem in error.problems])
        case RequestValidationError():
            lines = [f"{'.'.join(map(str, d['loc']))}: {d['msg']}" for d in error.errors()]
            return Problem(422, "; ".join(lines) or "the request is not valid", errors=lines)
        case HTTPException():
            return Problem(error.status_code, str(error.detail), headers=dict(error.headers or {}))
    if status := next((code for kind, code in _STATUSES.items() if isinstance(error, kind)), None):
        return Problem(status, _of_database(error) if isinstance(error, SQLAlchemyError) else str(error))
    # the traceback goes to the log, never to the caller
    return Problem(500, "internal error; the service's log has the details")


def _of_database(error: SQLAlchemyError) -> str:
    if "is full" in str(error):
        return "the disk of the service's database is full: nothing was stored"
    return "the database does not answer: try again"
