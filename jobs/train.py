"""``python -m jobs.train SPEC``: the command line that a submitted job runs.

With ``python -P`` a ``jobs.py`` in the working directory does not hide this package.
"""

from __future__ import annotations

import argparse
import json
import os
import shlex
import sys
import tempfile
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import IO, Any, cast

import yaml
from rich.console import Console

from guard.rows import strict
from jobs.checkpoints.listing import newest_step
from jobs.client.submission import SPEC_VARIABLE, note_folder
from jobs.cluster.driver import run_job
from jobs.cluster.session import JOB_CONFIG_VAR, ClusterError
from jobs.data.errors import DataError, SampleError
from jobs.errors import EXIT_CODES, INTERRUPTED, JobError, JobFinished, exit_code_of
from jobs.observability.console import print_summary
from jobs.observability.terminal import TerminalOutput, show_any_text
from jobs.ray_internals.core import leave_if_killed
from jobs.spec.errors import SpecError
from jobs.spec.imported import find_modules_in
from jobs.spec.job_spec import JobSpec
from jobs.workloads.errors import WorkloadError

USER_ERRORS = (SpecError, JobError, ClusterError, DataError, SampleError, WorkloadError)


def main(arguments: list[str] | None = None) -> int:
    """Runs the spec of the command line; returns the exit code."""
    options = _parser().parse_args(arguments)
    show_any_text()
    try:
        if options.spec is not None:
            find_modules_in(options.spec.parent)
        source = "--from-environment" if options.from_environment else str(options.spec)
        return train_and_summarize(
            _spec(options).profiled() if options.profile else _spec(options),
            command=continue_command("python -m jobs.train", source, options.set),
            address=options.address,
            resume=options.resume,
            overwrite=options.overwrite,
            as_json=options.json,
        )
    except USER_ERRORS as error:
        print(error, file=sys.stderr)
        return exit_code_of(error)
    except KeyboardInterrupt:
        return INTERRUPTED
    except Exception as error:  # noqa: BLE001 - the traceback is in a file
        print(unforeseen(error), file=sys.stderr)
        return EXIT_CODES["failed"]


def unforeseen(error: Exception) -> str:
    """One line for an error that nobody foresaw, and the file that has its traceback."""
    from jobs.cluster.failures import log_failure, one_line

    descriptor, log = tempfile.mkstemp(prefix="gradguard-", suffix=".log")
    os.close(descriptor)
    log_failure(Path(log), error)
    return f"{one_line(error)}; the traceback is in {log}"


def continue_command(program: str, source: str, overrides: Sequence[str]) -> str:
    """The command of a run without its flags, quoted for a shell: with --resume it continues the job."""
    return shlex.join([*program.split(), source, *(f"--set={item}" for item in overrides)])


def _spec(options: argparse.Namespace) -> JobSpec:
    """The spec; in a submitted job, relative storage is below ``~/gradguard``, where it outlives the job."""
    if options.from_environment:
        spec = JobSpec.from_dict(yaml.safe_load(os.environ[SPEC_VARIABLE]))
    else:
        spec = JobSpec.load(options.spec, options.set)
    if JOB_CONFIG_VAR in os.environ:
        storage = Path.home() / "gradguard" / Path(spec.storage).expanduser()
        spec = spec.model_copy(update={"storage": str(storage)})
        note_folder(spec)
    return spec


def train_and_summarize(spec: JobSpec, *, as_json: bool = False, **options: Any) -> int:
    """Runs the job with the live view, prints the summary, returns the exit code; with ``as_json`` standard
    output has the result only."""
    output = TerminalOutput(sys.stderr if as_json else sys.stdout)
    console = Console(file=cast("IO[str]", output), stderr=as_json)
    try:
        result = run_job(spec, console=console, closed=output.closed_by_reader, **options)
    except JobFinished as finished:
        console.print(str(finished), markup=False, highlight=False, soft_wrap=True)
        return EXIT_CODES["succeeded"]
    except KeyboardInterrupt:
        _say_how_to_continue(console, spec, options["command"])
        raise
    print_summary(console, result, spec.job_dir)
    if as_json:
        document = TerminalOutput(sys.stdout)
        document.write(json.dumps(strict(result), allow_nan=False) + "\n")
        document.flush()
    return EXIT_CODES[result["status"]]


def _say_how_to_continue(console: Console, spec: JobSpec, command: str) -> None:
    """After a second Ctrl-C: the line that continues, and from where if that is known without a network."""
    place, step = spec.absolute().checkpoint_place, None
    with suppress(OSError):
        step = newest_step(place) if isinstance(place, Path) else None
    saved = "" if step is None else f" from the checkpoint of step {step}"
    line = f"ended at once; continue{saved}: {command} --resume"
    console.print(line, markup=False, highlight=False, soft_wrap=True)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m jobs.train", description=__doc__.splitlines()[0])
    source = parser.add_mutually_exclusive_group(required=True)
    source.add_argument("spec", nargs="?", type=Path, help="The job's spec, YAML or JSON.")
    source.add_argument(
        "--from-environment", action="store_true", help=f"Read the spec from ${SPEC_VARIABLE}."
    )
    add = parser.add_argument
    add("--set", action="append", default=[], metavar="FIELD=VALUE", help="Override a field of the spec.")
    add("--address", help="host:port of a Ray cluster. Default: an embedded one.")
    add("--resume", action="store_true", help="Continue an unfinished job of this name.")
    add("--overwrite", action="store_true", help="Start again; the folder of the old job is renamed.")
    add("--profile", action="store_true", help="Record 3 steps with torch's profiler, into the job's folder.")
    add("--json", action="store_true", help="Print JSON instead of text.")
    return parser


if __name__ == "__main__":
    exit_code = main()
    leave_if_killed(exit_code)
    sys.exit(exit_code)
