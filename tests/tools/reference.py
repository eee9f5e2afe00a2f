"""Writes service/API.md, the HTTP API, and service/CLI.md, the command: ``python -m tests.tools.reference``.

``python -m tests.tools.reference --all`` writes every document that is made from the code.
"""

from __future__ import annotations

import sys
import tempfile
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, get_type_hints

import typer.main
from fastapi.routing import APIRoute

from tests.tools.schema_table import allowed, default, kind, markdown, name_of, references, table

HERE = Path(__file__).parents[2] / "service"
API, CLI = HERE / "API.md", HERE / "CLI.md"

API_HEAD = """# HTTP API of the service

Written by `python -m tests.tools.reference`, from the API's own description; a test fails where it is not up to
date. [README.md](README.md) says how the service is started and used. A service that runs describes itself at
`/openapi.json`.

Requests and answers are JSON, unless it says otherwise. The token goes into the header
`Authorization: Bearer TOKEN`; the scope that an endpoint needs includes those below it: `read`, `submit`,
`admin`. Times are Unix seconds. `None` is `null`. A number that JSON cannot hold is the text `nan`, `inf` or
`-inf`. Every error is a [problem document](#problemdocument), `application/problem+json`, whose `detail` says
what to do.

| Status | Means |
|---|---|
| 400, 422 | the request is wrong; `errors` has each thing with its place |
| 401 | the token is missing, wrong, expired or revoked |
| 403 | the token's scope is too small, or a page of another origin asks |
| 404 | there is no such job, or it has no such file yet |
| 409 | not in the state that the job is in; or an `Idempotency-Key` was used for something else |
| 413 | larger than the service takes |
| 429 | too many requests; the header `Retry-After` says when to come again |
| 503 | not ready, or Ray does not answer |
"""
CLI_HEAD = """<!-- Written by `python -m tests.tools.reference`, from the code; a test fails where it is old. -->

"""


def api_document() -> str:
    """The HTTP API, endpoint by endpoint, then the documents that it takes and gives."""
    schema, scopes = _described()
    lines = [API_HEAD, "## Endpoints\n", *_overview(schema, scopes), ""]
    for path, method, endpoint in _endpoints(schema):
        lines += _endpoint(path, method, endpoint, scopes[path, method])
    lines.append("## Documents\n")
    for name, document in sorted(schema["components"]["schemas"].items()):
        if name not in ("HTTPValidationError", "ValidationError"):  # FastAPI's own; problem documents here
            lines += [f"### {name}\n", f"{markdown(document.get('description', ''))}\n"]
            fields = {name: _told(field) for name, field in document.get("properties", {}).items()}
            lines += [*table({**document, "properties": fields}, _link), ""]
    return "\n".join(lines)


def cli_document() -> str:
    """Every command with its arguments and options."""
    from typer.cli import get_docs_for_click

    from service.cli.app import app

    command = typer.main.get_command(app)
    context = typer.Context(command)
    text = get_docs_for_click(obj=command, ctx=context, name="gradguard")
    return CLI_HEAD + text.replace("&#x27;", "'").strip() + "\n"


def _described() -> tuple[dict[str, Any], dict[tuple[str, str], str]]:
    """The OpenAPI description, and the scope that each endpoint needs."""
    from service.api import Context
    from service.api.auth import Admin, Reader, Submitter
    from service.app import make_app
    from service.store import JobStore, Packages, Tokens, open_database

    names = {Reader: "read", Submitter: "submit", Admin: "admin"}
    with tempfile.TemporaryDirectory() as folder:
        engine = open_database(f"sqlite:///{folder}/service.db")
        store = JobStore(engine)
        app = make_app(Context(store, Packages(engine), Tokens(engine), Path(folder), auth=True))
        described = app.openapi()
        engine.dispose()
    scopes = {}
    for route in _routes(app.routes):
        hints = list(get_type_hints(route.endpoint, include_extras=True).values())
        scope = next((name for dependency, name in names.items() if dependency in hints), "")
        scopes.update({(route.path, method.lower()): scope for method in route.methods or ()})
    return described, scopes


def _routes(routes: Iterable[Any]) -> Iterator[APIRoute]:
    """Those of the app and of the routers that it includes."""
    for route in routes:
        if isinstance(route, APIRoute):
            yield route
        elif (router := getattr(route, "original_router", None)) is not None:
            yield from _routes(router.routes)


def _endpoints(schema: Mapping[str, Any]) -> Iterator[tuple[str, str, Mapping[str, Any]]]:
    for path, methods in schema["paths"].items():
        for method, endpoint in methods.items():
            yield path, method, endpoint


def _overview(schema: Mapping[str, Any], scopes: Mapping[tuple[str, str], str]) -> Iterator[str]:
    yield "| Endpoint | Scope | What it does |\n|---|---|---|"
    for path, method, endpoint in _endpoints(schema):
        title = f"{method.upper()} {path}"
        what = markdown(endpoint.get("description", endpoint["summary"])).partition(". ")[0].rstrip(".")
        yield f"| [`{title}`](#{_anchor(title)}) | {scopes[path, method] or 'none'} | {what} |"


def _endpoint(path: str, method: str, endpoint: Mapping[str, Any], scope: str) -> Iterator[str]:
    yield f"### `{method.upper()} {path}`\n"
    yield f"{markdown(endpoint.get('description', endpoint['summary']))}\n"
    yield f"Scope: {f'`{scope}`' if scope else 'none, not even a token'}.\n"
    if parameters := endpoint.get("parameters"):
        yield "| Parameter | In | Type | Default | Allowed | Meaning |\n|---|---|---|---|---|---|"
        yield from map(_parameter, parameters)
        yield ""
    if body := endpoint.get("requestBody"):
        yield f"Takes {_content(body['content'])}.\n"
    answers = {code: answer for code, answer in endpoint["responses"].items() if code < "300"}
    for code, answer in answers.items():
        yield f"Answers {code}{_gives(answer)}. Errors: {_errors(endpoint)}.\n"


def _told(field: Mapping[str, Any]) -> dict[str, Any]:
    """FastAPI leaves out a default that is null."""
    null = any(option.get("type") == "null" for option in field.get("anyOf", ()))
    return {"default": None, **field} if null else dict(field)


def _parameter(parameter: Mapping[str, Any]) -> str:
    schema = _told(parameter["schema"])
    cells = (
        f"`{parameter['name']}`",
        parameter["in"],
        kind(schema, _link),
        "required" if parameter.get("required") else default(schema),
        "; ".join(allowed(schema)),
        markdown(parameter.get("description", "")),
    )
    return "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |"


def _gives(answer: Mapping[str, Any]) -> str:
    return f", {_content(answer['content'])}" if answer.get("content") else ", without a body"


def _content(content: Mapping[str, Any]) -> str:
    return " or ".join(
        f"{kind(inner['schema'], _link)}, `{media}`" if _is_named(inner) else f"`{media}`"
        for media, inner in content.items()
    )


def _is_named(inner: Mapping[str, Any]) -> bool:
    return any(references(inner.get("schema", {})))


def _errors(endpoint: Mapping[str, Any]) -> str:
    return ", ".join(sorted(code for code in endpoint["responses"] if code >= "400")) or "none"


def _link(name: str) -> str:
    return f"[{name_of(name)}](#{name_of(name).lower()})"


def _anchor(title: str) -> str:
    """As GitHub makes it of a heading."""
    return "".join(c for c in title.lower().replace(" ", "-") if c.isalnum() or c in "-_")


def write_all() -> None:
    """Writes every document that is made from the code."""
    from tests.tools import api_reference, metrics_table, spec_reference

    metrics_table.PATH.write_text(metrics_table.table())
    spec_reference.PATH.write_text(spec_reference.document())
    for path, text in api_reference.documents().items():
        path.write_text(text)


if __name__ == "__main__":
    API.write_text(api_document())
    CLI.write_text(cli_document())
    if "--all" in sys.argv[1:]:
        write_all()
