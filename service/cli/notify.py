"""``gradguard notify``: the notices of a spec."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Annotated

import typer
from typer import Option, Typer

from jobs.errors import FAILED, JobError
from jobs.run_dir.reader import RunReader
from jobs.spec.job_spec import JobSpec
from jobs.spec.notify import NoticeKind
from service.cli.options import JsonOption, SetOption, SpecArgument

notify_app = Typer(help="Notices of a job.")


@notify_app.callback()
def _options() -> None:
    """One command today, a group of them by name."""


@notify_app.command("test", epilog="Example: gradguard notify test my-job.yaml")
def try_receivers(
    spec: SpecArgument,
    overrides: SetOption = None,
    event: Annotated[NoticeKind, Option(help="Of which kind: for its text.")] = "started",
    as_json: JsonOption = False,
) -> None:
    """Send a notice, with the chart of a job that has trained, to each receiver of a spec (notify)."""
    from jobs.notify.chart import chart
    from jobs.notify.notice import Notice
    from jobs.notify.senders import NotSent, send

    job = JobSpec.load(spec, overrides or [])
    if not job.notify:
        raise JobError(f"{spec} has no section notify: write notify: [{{kind: slack, url: $SLACK_URL}}]")
    problems: list[str | None] = []
    sentence = f"This is a test of the notices of {job.name}."
    notice = Notice(job.name, event, sentence, files=RunReader(job.job_dir))
    for at, receiver in enumerate(job.notify):
        picture = chart(notice) if receiver.wants_picture else b""
        try:
            send(receiver, replace(notice, picture=picture).worded_for(receiver, 0))
            problems.append(None)
        except NotSent as error:
            problems.append(str(error))
        if not as_json:
            line = problems[-1] or f"the {receiver.kind} took it"
            typer.echo(f"notify[{at}]: {line}", err=problems[-1] is not None)
    if as_json:
        kinds = [receiver.kind for receiver in job.notify]
        rows = [{"kind": kind, "error": error} for kind, error in zip(kinds, problems, strict=True)]
        typer.echo(json.dumps(rows))
    if any(problems):
        raise typer.Exit(FAILED)
