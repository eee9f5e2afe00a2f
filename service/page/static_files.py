"""The files of the page, and the scope of its caller."""

import hashlib
from functools import cache
from pathlib import Path
from typing import Literal

from fastapi import APIRouter, Request
from pydantic import BaseModel
from starlette.responses import Response

from jobs.report.colors import DARK, LIGHT
from service.api.auth import Reader
from service.api.context import Service
from service.api.job_routes import COMMON
from service.api.problems import Problem, documented

POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; connect-src 'self'; "
    "base-uri 'none'; form-action 'none'; frame-ancestors 'none'; "
    "require-trusted-types-for 'script'; trusted-types 'none'"
)
KINDS = {
    "css": "text/css; charset=utf-8",
    "js": "text/javascript; charset=utf-8",
    "svg": "image/svg+xml",
    "txt": "text/plain; charset=utf-8",
}
STATIC = Path(__file__).with_name("static")
COLORS = "colors.css"
router = APIRouter()


class Me(BaseModel):
    """The caller and its scope."""

    name: str
    scope: Literal["read", "submit", "admin"]
    tokens: bool
    """Whether this service requires tokens."""


@router.get("/", include_in_schema=False)
@router.get("/submit", include_in_schema=False)
@router.get("/compare", include_in_schema=False)
@router.get("/replay", include_in_schema=False)
@router.get("/jobs/{job_id}", include_in_schema=False)
def page(service: Service) -> Response:
    """One document for all views; the browser decides which is shown."""
    tokens = "asked" if service.auth else "none"
    content = _file("index.html").decode().replace("{{tokens}}", tokens)
    headers = {"Content-Security-Policy": POLICY}
    return Response(content, media_type="text/html; charset=utf-8", headers=headers)


@router.get("/page/{name:path}", include_in_schema=False)
def file(name: str, http: Request) -> Response:
    """A script, a style or a picture; with an ETag, so that it is sent again only if it has changed."""
    kind = KINDS.get(name.rpartition(".")[2])
    if kind is None or name not in _names():
        raise Problem(404, f"the page has no file {name[:80]}")
    content = _file(name)
    headers = {"ETag": f'"{hashlib.sha256(content).hexdigest()[:32]}"', "Cache-Control": "no-cache"}
    if http.headers.get("if-none-match") == headers["ETag"]:
        return Response(status_code=304, headers=headers)
    return Response(content, media_type=kind, headers={**headers, "Content-Security-Policy": POLICY})


@router.get("/v1/me", responses=documented(*COMMON))
def me(service: Service, caller: Reader) -> Me:
    """The owner of the token, and its scope."""
    return Me(name=caller.name, scope=caller.scope, tokens=service.auth)


@cache
def _names() -> frozenset[str]:
    return frozenset({COLORS, *(found.relative_to(STATIC).as_posix() for found in STATIC.rglob("*.*"))})


@cache
def _file(name: str) -> bytes:
    return _colors().encode() if name == COLORS else (STATIC / name).read_bytes()


def _colors() -> str:
    """The colours of the report, so that the page looks like it."""
    dark = _variables(DARK, "    ")
    return (
        f":root {{\n{_variables(LIGHT, '  ')}}}\n"
        f"@media (prefers-color-scheme: dark) {{\n  :root {{\n{dark}  }}\n}}\n"
    )


def _variables(palette: dict[str, str], indent: str) -> str:
    return "".join(f"{indent}--{name}: {color};\n" for name, color in palette.items())
