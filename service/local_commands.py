"""Commands that need no cluster: check a spec, rebuild a report, replay a log."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from jobs.errors import JobError
from jobs.folder import JobFolder
from jobs.report import write_report
from jobs.spec import JobSpec
from service.options import SetOption, SpecArgument
from service.replay_command import replay


def add_local_commands(app: typer.Typer) -> None:
    """Puts the commands on the app."""
    app.command()(check)
    app.command()(report)
    app.command()(replay)


def check(
    spec: SpecArgument,
    overrides: SetOption = None,
    show: Annotated[bool, typer.Option("--show", help="Print the whole spec, defaults included.")] = False,
) -> None:
    """Validate a spec, without training anything."""
    job = JobSpec.load(spec, overrides or [])
    console = Console(highlight=False)
    if show:
        console.print(job.to_yaml(), end="", markup=False, soft_wrap=True)
    else:
        console.print(
            f"{spec} is valid: job {job.name}, files in {job.job_dir}", markup=False, soft_wrap=True
        )


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
