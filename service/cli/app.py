"""The command ``gradguard``."""

from __future__ import annotations

import sys
from typing import Annotated

import typer
from rich.console import Console

from guard.decide.replay import TraceError
from jobs.errors import BAD_INPUT, INTERRUPTED, JobError
from jobs.spec.errors import SpecError
from jobs.spec.job_spec import JobSpec
from service.cli.checkpoints import add_checkpoint_commands
from service.cli.compare import add_compare_command
from service.cli.jobs import add_job_commands
from service.cli.local import add_local_commands
from service.cli.options import JsonOption, SetOption, SpecArgument
from service.cli.query import add_query_commands
from service.cli.serve import serve
from service.cli.tokens import tokens_app

app = typer.Typer(
    name="gradguard",
    help="Distributed PyTorch training that survives gradient explosions.",
    no_args_is_help=True,
    add_completion=True,
    pretty_exceptions_enable=False,
)


@app.command()
def train(
    spec: SpecArgument,
    overrides: SetOption = None,
    address: Annotated[
        str | None, typer.Option(help="host:port of a Ray cluster; default: an embedded one.")
    ] = None,
    resume: Annotated[
        bool, typer.Option("--resume", help="Continue an unfinished job of this name.")
    ] = False,
    overwrite: Annotated[
        bool, typer.Option("--overwrite", help="Start anew; an existing job of this name is set aside.")
    ] = False,
    as_json: JsonOption = False,
) -> None:
    """Train a job here and show it live; at the end a summary and a report."""
    job = JobSpec.load(spec, overrides or [])
    from jobs.train import train_and_summarize

    command = " ".join(["gradguard train", str(spec), *(f"--set {item}" for item in overrides or [])])
    raise typer.Exit(
        train_and_summarize(
            job, command=command, address=address, resume=resume, overwrite=overwrite, as_json=as_json
        )
    )


add_local_commands(app)
add_checkpoint_commands(app)
add_compare_command(app)
add_job_commands(app)
add_query_commands(app)
app.command()(serve)
app.add_typer(tokens_app, name="tokens")


def main() -> None:
    """Runs the command; bad input is one line and exit code 2, never a traceback."""
    try:
        app()
    except KeyboardInterrupt:
        sys.exit(INTERRUPTED)
    except Exception as error:
        if not _is_the_users(error):
            raise
        Console(stderr=True, highlight=False).print(str(error), style="red", markup=False, soft_wrap=True)
        sys.exit(BAD_INPUT)


def _is_the_users(error: Exception) -> bool:
    if isinstance(error, JobError | SpecError | TraceError):
        return True
    from jobs.train import USER_ERRORS

    return isinstance(error, USER_ERRORS)


if __name__ == "__main__":
    main()
