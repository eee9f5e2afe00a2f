"""``gradguard tokens``: manages access to the service, in its database."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console
from typer import Argument, Option

from jobs.errors import JobError
from service.cli.options import JsonOption
from service.cli.tables import PlainTable
from service.settings import DATABASE_VARIABLE, default_database, storage_folder

if TYPE_CHECKING:
    from service.store import Tokens
    from service.store.models import TokenRow

Database = Annotated[
    str | None, Option("--database", envvar=DATABASE_VARIABLE, help="Database URL of the service.")
]
Storage = Annotated[Path | None, Option("--storage", help="Storage folder of the service.")]
tokens_app = typer.Typer(help="Create, list and revoke access tokens of the service.")


@tokens_app.command()
def create(
    name: Annotated[str, Argument(help="Name of its owner.")],
    scope: Annotated[str, Option(help="read, submit or admin; each includes the ones before it.")] = "submit",
    days: Annotated[float | None, Option(help="Days until it expires. Default: never.")] = None,
    max_jobs: Annotated[
        int | None, Option(min=0, help="Most jobs of its own that have not ended. Default: no limit.")
    ] = None,
    max_gpus: Annotated[
        float | None, Option(min=0.0, help="Most GPUs that these ask for together. Default: no limit.")
    ] = None,
    database: Database = None,
    storage: Storage = None,
    as_json: JsonOption = False,
) -> None:
    """Create a token and print it. It is shown only once."""
    from service.store import SCOPES

    known = {str(one): one for one in SCOPES}
    if scope not in known:
        raise JobError(f"--scope {scope} is unknown: write one of {', '.join(known)}")
    if days is not None and not days > 0:
        raise JobError(f"--days {days:g}: must be more than 0; omit it for a token that does not expire")
    token = _tokens(database, storage).create(
        name, known[scope], days=days, max_jobs=max_jobs, max_gpus=max_gpus
    )
    typer.echo(json.dumps({"name": name, "scope": scope, "token": token}) if as_json else token)


@tokens_app.command(name="list")
def list_tokens(database: Database = None, storage: Storage = None, as_json: JsonOption = False) -> None:
    """List all tokens, without their secrets, which are not stored."""
    rows = [
        (row.name, row.scope, _state(row), row.created, row.last_used)
        for row in _tokens(database, storage).all()
    ]
    if as_json:
        fields = ("name", "scope", "state", "created", "last_used")
        typer.echo(json.dumps([dict(zip(fields, row, strict=True)) for row in rows]))
        return
    table = PlainTable("name", "scope", "state", "created", "last used", box=None)
    for name, scope, state, created, last_used in rows:
        table.add_row(name, scope, state, _day(created), _day(last_used) or "never")
    Console().print(table)


@tokens_app.command()
def revoke(
    name: Annotated[str, Argument(help="Name of its owner.")],
    database: Database = None,
    storage: Storage = None,
    as_json: JsonOption = False,
) -> None:
    """Invalidate a token at once."""
    _tokens(database, storage).revoke(name)
    typer.echo(json.dumps({"name": name, "state": "revoked"}) if as_json else f"{name} is revoked")


def _tokens(database: str | None, storage: Path | None) -> Tokens:
    from service.store import Tokens, open_database

    return Tokens(open_database(database or default_database(storage_folder(storage))))


def _state(row: TokenRow) -> str:
    if row.revoked is not None:
        return "revoked"
    return "expired" if row.expires is not None and row.expires < time.time() else "valid"


def _day(when: float | None) -> str:
    return "" if when is None else time.strftime("%Y-%m-%d %H:%M", time.localtime(when))
