"""``gradguard audit``: who did what, from the database of the service."""

from __future__ import annotations

import json
import time
from typing import Annotated

import typer
from rich.console import Console
from typer import Argument, Option

from service.cli.options import JsonOption
from service.cli.tables import PlainTable
from service.cli.tokens import Database, Storage
from service.settings import default_database, storage_folder

FIELDS = ("seq", "time", "token", "address", "action", "subject", "detail")


def audit(
    subject: Annotated[str | None, Argument(help="Id of a job, or name of a token. Default: all.")] = None,
    after: Annotated[int, Option(min=0, help="Only entries after this number.")] = 0,
    limit: Annotated[int, Option(min=1, help="How many at most.")] = 200,
    database: Database = None,
    storage: Storage = None,
    as_json: JsonOption = False,
) -> None:
    """Show who submitted, stopped, resumed and deleted what, with which token. Deleted jobs stay in it."""
    from service.store import AuditLog, open_database

    engine = open_database(database or default_database(storage_folder(storage)))
    rows = AuditLog(engine).rows(after=after, subject=subject, limit=limit)
    if as_json:
        typer.echo(json.dumps([{name: getattr(row, name) for name in FIELDS} for row in rows]))
        return
    table = PlainTable(*FIELDS, box=None)
    for row in rows:
        when = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(row.time))
        table.add_row(str(row.seq), when, row.token, row.address, row.action, row.subject, row.detail)
    Console().print(table)
