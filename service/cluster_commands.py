"""Commands against a Ray cluster: submit a job, list, follow and stop jobs."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.table import Table

from jobs.client import Job, JobClient
from jobs.entrypoint import EXIT_CODES
from jobs.spec import JobSpec
from service.options import SetOption, SpecArgument

AddressOption = Annotated[
    str,
    typer.Option(
        envvar=["GRADGUARD_ADDRESS", "RAY_API_SERVER_ADDRESS"], help="URL of the Ray cluster's dashboard."
    ),
]
LOCAL = "http://127.0.0.1:8265"


def add_cluster_commands(app: typer.Typer) -> None:
    """Puts the commands on the app."""
    app.command()(submit)
    app.command(name="list")(list_jobs)
    app.command()(status)
    app.command()(logs)
    app.command()(stop)


def submit(
    spec: SpecArgument,
    overrides: SetOption = None,
    address: AddressOption = LOCAL,
    working_dir: Annotated[
        Path | None, typer.Option(help="Folder to ship with the job, for a workload of your own.")
    ] = None,
    wait: Annotated[bool, typer.Option("--wait", help="Follow the log until the job has ended.")] = False,
) -> None:
    """Hand a job to a Ray cluster; prints its id."""
    client = JobClient(address)
    logging.disable(logging.INFO)  # of how Ray packs the code: the id alone is to be seen
    job = client.submit(JobSpec.load(spec, overrides or []), working_dir=working_dir)
    typer.echo(job.id)
    if wait:
        _follow(job)


def list_jobs(address: AddressOption = LOCAL) -> None:
    """List the jobs of a cluster, the newest first."""
    table = Table("id", "status", "exit code", box=None)
    for job in JobClient(address).list():
        table.add_row(job.id, job.status, "" if job.exit_code is None else str(job.exit_code))
    Console().print(table)


def status(job_id: str, address: AddressOption = LOCAL) -> None:
    """Say how a job is."""
    typer.echo(JobClient(address).get(job_id).status)


def logs(
    job_id: str,
    address: AddressOption = LOCAL,
    follow: Annotated[bool, typer.Option("--follow", "-f", help="Go on until the job has ended.")] = False,
) -> None:
    """Print what a job has printed."""
    for piece in JobClient(address).logs(job_id, follow=follow):
        typer.echo(piece, nl=False)


def stop(job_id: str, address: AddressOption = LOCAL) -> None:
    """Ask a job to save its state and end."""
    JobClient(address).stop(job_id)
    typer.echo(f"{job_id} was asked to stop")


def _follow(job: Job) -> None:
    for piece in job.logs(follow=True):
        typer.echo(piece, nl=False)
    ended = job.wait()
    raise typer.Exit(EXIT_CODES.get(ended.status, 1))
