"""Commands that need no cluster: check a spec, replay a log."""

from __future__ import annotations

import typer

from service.cli.check import check
from service.cli.replay import replay


def add_local_commands(app: typer.Typer) -> None:
    """Puts the commands on the app."""
    app.command()(check)
    app.command()(replay)
