"""Commands that act on jobs: submit, stop, resume, clone, delete, logs."""

from __future__ import annotations

import json
import logging
import os
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from typer import Option

from jobs.errors import EXIT_CODES, JobError
from jobs.spec.job_spec import JobSpec
from service.cli.options import AddressOption, JsonOption, SetOption, SpecArgument

if TYPE_CHECKING:
    from jobs.client import Job, JobClient

WaitOption = Annotated[
    bool, Option("--wait", help="Print the log until the job ends; exit with the job's exit code.")
]


def submit(
    spec: SpecArgument,
    overrides: SetOption = None,
    address: AddressOption = None,
    working_dir: Annotated[
        Path | None, Option(help="Folder to ship with the job, for your own workload.")
    ] = None,
    priority: Annotated[int, Option(help="Waiting jobs with a higher priority start first.")] = 0,
    max_restarts: Annotated[
        int | None, Option(min=0, help="Restarts allowed after its driver or Ray's head died.")
    ] = None,
    env: Annotated[
        list[str] | None,
        Option(
            metavar="NAME[=VALUE]",
            help="Environment variable of the job; without VALUE, the value in this shell.",
        ),
    ] = None,
    wait: WaitOption = False,
    as_json: JsonOption = False,
) -> None:
    """Submit a job; print its id."""
    job_spec, variables = JobSpec.load(spec, overrides or []), _variables(env or [])
    logging.disable(logging.INFO)  # Ray reports how it packs the code; the output is the id alone
    job = client_at(address).submit(
        job_spec, working_dir=working_dir, priority=priority, max_restarts=max_restarts, env=variables
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
    job_id: str, address: AddressOption = None, wait: WaitOption = False, as_json: JsonOption = False
) -> None:
    """Continue an ended job from its last good checkpoint."""
    job = client_at(address).resume(job_id)
    _print(job, f"{job.id} continues", as_json=as_json)
    if wait:
        _follow(job)


def clone(
    job_id: str,
    changes: SetOption = None,
    address: AddressOption = None,
    priority: Annotated[int | None, Option(help="Default: the priority of the job.")] = None,
    as_json: JsonOption = False,
) -> None:
    """Submit a copy of a job, with changes; print its id."""
    job = client_at(address).clone(job_id, changes or [], priority=priority)
    _print(job, job.id, as_json=as_json)


def delete(
    job_id: str,
    address: AddressOption = None,
    files: Annotated[bool, Option("--files", help="Delete its folder too, checkpoints included.")] = False,
    as_json: JsonOption = False,
) -> None:
    """Delete an ended job from the list."""
    client_at(address).delete(job_id, files=files)
    typer.echo(json.dumps({"id": job_id, "deleted": True}) if as_json else f"{job_id} is deleted")


def logs(
    job_id: str,
    address: AddressOption = None,
    follow: Annotated[bool, Option("--follow", "-f", help="Continue until the job ends.")] = False,
    offset: Annotated[int, Option(min=0, help="Skip this many bytes.")] = 0,
    as_json: JsonOption = False,
) -> None:
    """Print the output of a job; with --json, one line for each piece."""
    for piece in client_at(address).logs(job_id, follow=follow, offset=offset):
        typer.echo(json.dumps({"text": piece}) if as_json else piece, nl=as_json)


def client_at(address: str | None) -> JobClient:
    from jobs.client import JobClient

    return JobClient(address)


def _variables(pairs: list[str]) -> dict[str, str]:
    """Other users can see a command line: a variable without a value takes that of the environment."""
    found = {}
    for pair in pairs:
        name, equals, value = pair.partition("=")
        if not equals and name not in os.environ:
            raise JobError(f"--env {name}: not set in this shell; set it, or write {name}=VALUE")
        found[name] = value if equals else os.environ[name]
    return found


def _print(job: Job, text: str, *, as_json: bool) -> None:
    typer.echo(job.info.model_dump_json() if as_json else text)


def _follow(job: Job) -> None:
    for piece in job.logs(follow=True):
        typer.echo(piece, nl=False)
    raise typer.Exit(EXIT_CODES.get(job.wait().status, 1))
