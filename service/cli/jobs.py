"""Commands that act on jobs: submit, stop, resume, clone, delete, logs."""

from __future__ import annotations

import json
import logging
import os
import re
import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from typer import Argument, Option

from jobs.client.models import STATUSES
from jobs.errors import ENDED, EXIT_CODES, JobError, JobInterrupted
from jobs.spec.job_spec import JobSpec
from service.cli.options import AddressOption, JsonOption, SetOption, SpecArgument

if TYPE_CHECKING:
    from jobs.client import Job, JobClient

OptionalJob = Annotated[str | None, Argument(metavar="JOB_ID", help="Id of the job.", show_default=False)]
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
    tag: Annotated[list[str] | None, Option(help="Adds a tag, by which jobs are listed and stopped.")] = None,
    wait: WaitOption = False,
    as_json: JsonOption = False,
) -> None:
    """Submit a job; print its id."""
    job_spec, variables = with_tags(JobSpec.load(spec, overrides or []), tag or []), _variables(env or [])
    client = client_at(address)
    logging.disable(logging.INFO)  # Ray reports how it packs the code; the output is the id alone
    try:
        job = client.submit(
            job_spec, working_dir=working_dir, priority=priority, max_restarts=max_restarts, env=variables
        )
    except KeyboardInterrupt:
        look = f"gradguard list --name {job_spec.name}"
        raise JobInterrupted(f"interrupted: the job may have been submitted, `{look}` shows it") from None
    finally:
        logging.disable(logging.NOTSET)
    _print(job, job.id, as_json=as_json)
    if wait:
        _follow(job)


def with_tags(spec: JobSpec, tags: list[str]) -> JobSpec:
    """The spec with these tags after its own.

    Raises:
        SpecError: one is no tag.
    """
    together = list(dict.fromkeys([*spec.tags, *tags]))
    return JobSpec.from_dict({**spec.model_dump(mode="json"), "tags": together}) if tags else spec


def stop(
    job_id: OptionalJob = None,
    name: Annotated[
        str | None, Option(help="Instead of an id: all jobs that have not ended whose id contains this.")
    ] = None,
    tag: Annotated[str | None, Option(help="Instead of an id: all jobs with this tag.")] = None,
    address: AddressOption = None,
    as_json: JsonOption = False,
) -> None:
    """Ask a job, or all of a name or tag, to save their state and end."""
    client = client_at(address)
    _one_of(job_id, name or tag, "JOB_ID, or --name or --tag")
    running = [s for s in STATUSES if s not in ENDED]
    for each in [job_id] if job_id else [job.id for job in client.list(name=name, tag=tag, status=running)]:
        _stop(client, each, as_json=as_json)


def _stop(client: JobClient, job_id: str, *, as_json: bool) -> None:
    job = client.get(job_id)
    if job.ended:
        _print(job, f"{job_id} has ended already: {job.status}", as_json=as_json)
        return
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
    job_id: OptionalJob = None,
    older_than: Annotated[
        str | None,
        Option(metavar="AGE", help="Instead of an id: all that ended longer ago: 30d, 12h."),
    ] = None,
    name: Annotated[str | None, Option(help="With --older-than: only jobs whose id contains this.")] = None,
    tag: Annotated[str | None, Option(help="With --older-than: only jobs with this tag.")] = None,
    address: AddressOption = None,
    files: Annotated[bool, Option("--files", help="Delete the folder too, checkpoints included.")] = False,
    dry_run: Annotated[bool, Option("--dry-run", help="Only print what would be deleted.")] = False,
    as_json: JsonOption = False,
) -> None:
    """Delete an ended job, or all that ended long ago, from the list."""
    _one_of(job_id, older_than, "JOB_ID or --older-than")
    if (name is not None or tag is not None) and older_than is None:
        raise JobError("--name and --tag go with --older-than: add an age, such as --older-than 30d")
    client = client_at(address)
    for each in [job_id] if job_id else _older(client, seconds_of(older_than or ""), name, tag):
        if not dry_run:
            client.delete(each, files=files)
        done = "would be deleted" if dry_run else "is deleted"
        typer.echo(json.dumps({"id": each, "deleted": not dry_run}) if as_json else f"{each} {done}")


def _older(client: JobClient, age_s: float, name: str | None, tag: str | None) -> list[str]:
    """The jobs that ended longer ago, the oldest first."""
    jobs = client.list(name=name, tag=tag, status=sorted(ENDED))
    ended = ((job.info.ended or job.info.created, job.id) for job in jobs)
    return [job_id for when, job_id in sorted((w, i) for w, i in ended if w) if when < time.time() - age_s]


def seconds_of(age: str) -> float:
    """An age such as 90s, 30m, 12h, 7d or 4w, in seconds.

    Raises:
        JobError: it is none.
    """
    found = re.fullmatch(r"(\d+(?:\.\d+)?)([smhdw])", age.strip())
    if found is None:
        raise JobError(f"--older-than {age} is no age: write a number and s, m, h, d or w, such as 30d")
    return float(found[1]) * {"s": 1, "m": 60, "h": 3600, "d": 86_400, "w": 604_800}[found[2]]


def _one_of(first: str | None, second: str | None, what: str) -> None:
    if (first is None) == (second is None):
        raise JobError(f"give {what}, and not both")


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
    try:
        for piece in job.logs(follow=True):
            typer.echo(piece, nl=False)
        raise typer.Exit(EXIT_CODES.get(job.wait().status, 1))
    except KeyboardInterrupt:
        stop = f"gradguard stop {job.id}"
        raise JobInterrupted(f"interrupted: {job.id} continues, `{stop}` stops it") from None
