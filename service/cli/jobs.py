"""Commands that do something with jobs: submit, stop, resume, clone, delete, and read the log."""

from __future__ import annotations

import json
import logging
import os
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from jobs.errors import EXIT_CODES, JobError
from jobs.spec.job_spec import JobSpec
from service.cli.options import AddressOption, JsonOption, SetOption, SpecArgument

if TYPE_CHECKING:
    from jobs.client import Job, JobClient

EnvOption = Annotated[
    list[str] | None,
    typer.Option(
        "--env", metavar="NAME[=VALUE]", help="A variable of the job; without a value, that of this shell."
    ),
]


def add_job_commands(app: typer.Typer) -> None:
    """Puts the commands on the app."""
    for command in (submit, stop, checkpoint, resume, clone, delete, logs):
        app.command()(command)


def submit(
    spec: SpecArgument,
    overrides: SetOption = None,
    address: AddressOption = None,
    working_dir: Annotated[
        Path | None, typer.Option(help="Folder to ship with the job, for a workload of your own.")
    ] = None,
    priority: Annotated[int, typer.Option(help="The higher, the sooner, where jobs wait.")] = 0,
    max_restarts: Annotated[
        int | None, typer.Option(min=0, help="How often it is started again after its driver died.")
    ] = None,
    env: EnvOption = None,
    wait: Annotated[bool, typer.Option("--wait", help="Follow the log until the job has ended.")] = False,
    as_json: JsonOption = False,
) -> None:
    """Hand a job in; prints its id."""
    order = JobSpec.load(spec, overrides or [])
    variables = _variables(env or [])
    logging.disable(logging.INFO)  # of how Ray packs the code: the id alone is to be seen
    job = client_at(address).submit(
        order, working_dir=working_dir, priority=priority, max_restarts=max_restarts, env=variables
    )
    _print(job, job.id, as_json=as_json)
    if wait:
        _follow(job)


def stop(job_id: str, address: AddressOption = None, as_json: JsonOption = False) -> None:
    """Ask a job to save its state and end."""
    client = client_at(address)
    client.stop(job_id)
    _print(client.get(job_id), f"{job_id} was asked to stop", as_json=as_json)


def checkpoint(job_id: str, address: AddressOption = None, as_json: JsonOption = False) -> None:
    """Ask a running job to save a checkpoint now."""
    client = client_at(address)
    client.checkpoint(job_id)
    _print(client.get(job_id), f"{job_id} was asked for a checkpoint", as_json=as_json)


def resume(
    job_id: str,
    address: AddressOption = None,
    wait: Annotated[bool, typer.Option("--wait", help="Follow the log until the job has ended.")] = False,
    as_json: JsonOption = False,
) -> None:
    """Continue an ended job from its last good checkpoint."""
    job = client_at(address).resume(job_id)
    _print(job, f"{job.id} goes on", as_json=as_json)
    if wait:
        _follow(job)


def clone(
    job_id: str,
    changes: SetOption = None,
    address: AddressOption = None,
    priority: Annotated[int | None, typer.Option(help="Default: that of the job.")] = None,
    as_json: JsonOption = False,
) -> None:
    """Hand in a job like another one, with changes; prints its id."""
    job = client_at(address).clone(job_id, changes or [], priority=priority)
    _print(job, job.id, as_json=as_json)


def delete(
    job_id: str,
    address: AddressOption = None,
    files: Annotated[bool, typer.Option("--files", help="Its folder too, checkpoints and all.")] = False,
    as_json: JsonOption = False,
) -> None:
    """Forget an ended job."""
    client_at(address).delete(job_id, files=files)
    typer.echo(json.dumps({"id": job_id, "deleted": True}) if as_json else f"{job_id} is forgotten")


def logs(
    job_id: str,
    address: AddressOption = None,
    follow: Annotated[bool, typer.Option("--follow", "-f", help="Go on until the job has ended.")] = False,
    offset: Annotated[int, typer.Option(min=0, help="Begin after so many bytes.")] = 0,
    as_json: JsonOption = False,
) -> None:
    """Print what a job has printed; as JSON, one line for each piece of it."""
    for piece in client_at(address).logs(job_id, follow=follow, offset=offset):
        typer.echo(json.dumps({"text": piece}) if as_json else piece, nl=as_json)


def client_at(address: str | None) -> JobClient:
    """The client for an address."""
    from jobs.client import JobClient

    return JobClient(address)


def _variables(pairs: list[str]) -> dict[str, str]:
    """A value on a command line can be seen by others: without one it is taken from the environment."""
    found = {}
    for pair in pairs:
        name, equals, value = pair.partition("=")
        if not equals and name not in os.environ:
            raise JobError(f"--env {name}: is not set in this shell; set it, or write {name}=VALUE")
        found[name] = value if equals else os.environ[name]
    return found


def _print(job: Job, text: str, *, as_json: bool) -> None:
    typer.echo(job.info.model_dump_json() if as_json else text)


def _follow(job: Job) -> None:
    for piece in job.logs(follow=True):
        typer.echo(piece, nl=False)
    ended = job.wait()
    raise typer.Exit(EXIT_CODES.get(ended.status, 1))
