"""The command ``gradguard``."""

import os
import signal
import sys
from contextlib import suppress
from typing import Annotated

import typer
from rich.console import Console
from typer import Option

from guard.logs.log import TraceError
from jobs.errors import FAILED, INTERRUPTED, JobError, exit_code_of
from jobs.observability.terminal import show_any_text
from jobs.spec.errors import SpecError
from jobs.spec.job_spec import JobSpec
from service.cli.audit import audit
from service.cli.check import check
from service.cli.checkpoints import checkpoints
from service.cli.compare import compare
from service.cli.download import download
from service.cli.jobs import checkpoint, clone, delete, logs, resume, stop, submit
from service.cli.notify import notify_app
from service.cli.options import JsonOption, SetOption, SpecArgument
from service.cli.predict import predict
from service.cli.query import incidents, list_jobs, report, status
from service.cli.replay import replay
from service.cli.serve import serve
from service.cli.sweep import sweep
from service.cli.tokens import tokens_app

EXAMPLES = {
    "Train": {
        "train": "gradguard train my-job.yaml --set optimizer.lr=0.05",
        "sweep": "gradguard sweep sweep.yaml",
        "check": "gradguard check my-job.yaml --lr-range",
    },
    "Inspect": {
        "replay": "gradguard replay metrics.csv --set sigmas=8 --plot alarms.svg",
        "checkpoints": "gradguard checkpoints runs/my-job --verify",
        "compare": "gradguard compare runs/my-job runs/other-job",
        "report": "gradguard report runs/my-job",
        "incidents": "gradguard incidents runs/my-job",
        "predict": "gradguard predict runs/my-job cat.png dog.png --top 3",
    },
    "Jobs of a service or a Ray cluster": {
        "submit": "gradguard submit my-job.yaml --env WANDB_API_KEY --wait",
        "list": "gradguard list --status running --watch",
        "status": "gradguard status my-job-1a2b3c",
        "logs": "gradguard logs my-job-1a2b3c --follow",
        "stop": "gradguard stop my-job-1a2b3c",
        "checkpoint": "gradguard checkpoint my-job-1a2b3c",
        "resume": "gradguard resume my-job-1a2b3c --wait",
        "download": "gradguard download my-job-1a2b3c --weights model.safetensors",
        "clone": "gradguard clone my-job-1a2b3c --set optimizer.lr=0.02",
        "delete": "gradguard delete my-job-1a2b3c --files",
    },
    "Service": {
        "serve": "gradguard serve --address http://ray-head:8265 --host 0.0.0.0",
        "audit": "gradguard audit my-job-1a2b3c",
    },
}
"""The panels of ``gradguard --help``, and an example for each command."""

HELP = {"help_option_names": ["-h", "--help"]}

app = typer.Typer(
    name="gradguard",
    context_settings=HELP,
    help="Distributed PyTorch training that survives gradient explosions.",
    add_completion=True,
    pretty_exceptions_enable=False,
)


def _print_versions(wanted: bool) -> None:
    if wanted:
        from jobs.run_dir.result import versions

        gradguard, *others = (f"{package} {version}" for package, version in versions().items())
        typer.echo(f"{gradguard} ({', '.join(others)})")
        raise typer.Exit


@app.callback(invoke_without_command=True)
def _options(
    context: typer.Context,
    _: Annotated[
        bool, Option("-V", "--version", help="Print the versions.", callback=_print_versions, is_eager=True)
    ] = False,
) -> None:
    """Options of the command itself; alone it prints the help."""
    if context.invoked_subcommand is None:
        typer.echo(context.get_help())


def train(
    spec: SpecArgument,
    overrides: SetOption = None,
    address: Annotated[
        str | None, Option(help="host:port of a Ray cluster. Default: an embedded one.")
    ] = None,
    resume: Annotated[bool, Option("--resume", help="Continue an unfinished job of this name.")] = False,
    overwrite: Annotated[
        bool, Option("--overwrite", help="Start again; the folder of the old job is renamed.")
    ] = False,
    profile: Annotated[
        bool, Option("--profile", help="Record 3 steps with torch's profiler, into the job's folder.")
    ] = False,
    as_json: JsonOption = False,
) -> None:
    """Train a job on this machine or a Ray cluster, with live progress, a summary and a report."""
    job = JobSpec.load(spec, overrides or [])
    job = job.profiled() if profile else job
    from jobs.ray_internals.core import leave_if_killed
    from jobs.spec.imported import find_modules_in
    from jobs.train import continue_command, train_and_summarize

    find_modules_in(spec.parent)

    again = continue_command("gradguard train", str(spec), overrides or [])
    code = train_and_summarize(
        job, command=again, address=address, resume=resume, overwrite=overwrite, as_json=as_json
    )
    leave_if_killed(code)
    raise typer.Exit(code)


PANELS = {name: panel for panel, examples in EXAMPLES.items() for name in examples}
JOB_COMMANDS = (submit, stop, checkpoint, resume, clone, delete, logs, list_jobs, status, incidents, report)
for command in (
    train,
    sweep,
    check,
    replay,
    checkpoints,
    compare,
    predict,
    *JOB_COMMANDS,
    download,
    serve,
    audit,
):
    name = command.__name__.removesuffix("_jobs")  # list is a name of Python
    example = f"Example: {EXAMPLES[PANELS[name]][name]}"
    app.command(name, rich_help_panel=PANELS[name], epilog=example, context_settings=HELP)(command)
app.add_typer(notify_app, name="notify", rich_help_panel="Inspect")
app.add_typer(tokens_app, name="tokens", rich_help_panel="Service")


def _end_by_ctrl_c() -> None:
    """Also in the background or below nohup, where SIGINT is ignored by inheritance."""
    with suppress(ValueError):  # not in the main thread
        if signal.getsignal(signal.SIGINT) == signal.SIG_IGN:
            signal.signal(signal.SIGINT, signal.default_int_handler)


def main() -> None:
    """Runs the command; bad input is one line and an exit code, never a traceback."""
    _end_by_ctrl_c()
    show_any_text()
    if os.environ.get("COLUMNS") == "0":  # rich would print nothing
        del os.environ["COLUMNS"]
    try:
        code = app(prog_name=app.info.name, standalone_mode=False)
    except KeyboardInterrupt:
        sys.exit(INTERRUPTED)
    except Exception as found:  # noqa: BLE001 - shown in one line
        error = _missing(found) or _misused(found) or found
        text, code = _line_and_code(error)
        Console(stderr=True, highlight=False).print(text, style="red", markup=False, soft_wrap=True)
        sys.exit(code)
    sys.exit(code if isinstance(code, int) else 0)


def _missing(error: Exception) -> JobError | None:
    """The line for a library that is not installed."""
    name = (error.name or "") if isinstance(error, ModuleNotFoundError) else ""
    if name.partition(".")[0] in ("", "guard", "jobs", "service"):
        return None
    return JobError(f"the library {name} is not installed here: python -m pip install gradguard installs it")


def _misused(error: Exception) -> JobError | None:
    """The line for a command, argument or option that there is not, and for a value of another kind."""
    if not hasattr(error, "format_message"):  # typer has brought its own copy of click since 0.26
        return None
    context = getattr(error, "ctx", None)
    path = context.command_path if context else "gradguard"
    message = " ".join(error.format_message().split())
    return JobError(f"{path}: {message}{'' if message.endswith(('.', '?')) else '.'} See {path} -h")


def _line_and_code(error: Exception) -> tuple[str, int]:
    """The line and the exit code; an unforeseen error also has its traceback in a file."""
    if not isinstance(error, JobError | SpecError | TraceError):
        from jobs.train import USER_ERRORS, unforeseen

        if not isinstance(error, USER_ERRORS):
            return unforeseen(error), FAILED
    return str(error), exit_code_of(error)


if __name__ == "__main__":
    main()
