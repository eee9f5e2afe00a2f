"""Commands that need no cluster: check a spec, rebuild a report, replay a log."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from jobs.errors import JobError
from jobs.folder import JobFolder
from jobs.report import write_report
from service.check_command import check
from service.replay_command import replay


def add_local_commands(app: typer.Typer) -> None:
    """Puts the commands on the app."""
    app.command()(check)
    app.command()(report)
    app.command()(replay)


def report(
    job_dir: Annotated[Path, typer.Argument(help="The folder of a job, such as runs/fashion.")],
) -> None:
    """Write the report of a job, finished or not, from its files."""
    folder = JobFolder(job_dir)
    if not (folder.spec.exists() or folder.metrics.exists()):
        raise JobError(
            f"{job_dir} is not the folder of a job: it has neither {folder.spec.name} nor metrics.jsonl"
        )
    typer.echo(str(write_report(job_dir)))
