"""``python -m jobs.train SPEC``: the command line that a submitted job runs.

With ``python -P`` a ``jobs.py`` in the working directory does not hide this package.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from pathlib import Path
from typing import Any

import yaml
from rich.console import Console

from guard.records import strict
from jobs.client.submission import SPEC_VARIABLE, note_folder
from jobs.cluster.driver import run_job
from jobs.cluster.session import JOB_CONFIG_VAR, ClusterError
from jobs.data.errors import DataError, SampleError
from jobs.errors import BAD_INPUT, EXIT_CODES, INTERRUPTED, JobError, JobFinished
from jobs.observability.console import print_summary
from jobs.spec.errors import SpecError
from jobs.spec.job_spec import JobSpec
from jobs.workloads.errors import WorkloadError

USER_ERRORS = (SpecError, JobError, ClusterError, DataError, SampleError, WorkloadError)


def main(arguments: list[str] | None = None) -> int:
    """Runs the spec of the command line; returns the exit code."""
    options = _parser().parse_args(arguments)
    try:
        spec, source = _spec(options)
        command = f"python -m jobs.train {source}"
        return train_and_summarize(spec, command=command, resume=options.resume, overwrite=options.overwrite)
    except USER_ERRORS as error:
        print(error, file=sys.stderr)
        return BAD_INPUT
    except KeyboardInterrupt:
        return INTERRUPTED


def _spec(options: argparse.Namespace) -> tuple[JobSpec, str]:
    """The spec and its source for messages; in a submitted job, relative storage is below ``~/gradguard``."""
    if options.from_environment:
        spec = JobSpec.from_dict(yaml.safe_load(os.environ[SPEC_VARIABLE]))
    else:
        spec = JobSpec.load(options.spec, options.set)
    if JOB_CONFIG_VAR in os.environ:
        storage = Path.home() / "gradguard" / Path(spec.storage).expanduser()
        spec = spec.model_copy(update={"storage": str(storage)})
        note_folder(spec)
    return spec, "--from-environment" if options.from_environment else str(options.spec)


def train_and_summarize(spec: JobSpec, *, as_json: bool = False, **options: Any) -> int:
    """Runs the job with the live view, prints the summary, returns the exit code; with ``as_json`` standard
    output has the result only."""
    console = Console(stderr=as_json)
    try:
        result = run_job(spec, console=console, **options)
    except JobFinished as finished:
        console.print(str(finished), markup=False, highlight=False, soft_wrap=True)
        return EXIT_CODES["succeeded"]
    print_summary(console, result, spec.job_dir)
    if as_json:
        print(json.dumps(strict(result), allow_nan=False))
    return EXIT_CODES[result["status"]]


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m jobs.train", description=__doc__.splitlines()[0])
    source = parser.add_mutually_exclusive_group(required=True)
    source.add_argument("spec", nargs="?", type=Path, help="the job's spec, YAML or JSON")
    source.add_argument("--from-environment", action="store_true", help=f"the spec is in ${SPEC_VARIABLE}")
    parser.add_argument("--set", action="append", default=[], metavar="FIELD=VALUE", help="override a field")
    parser.add_argument("--resume", action="store_true", help="continue an unfinished job of this name")
    parser.add_argument("--overwrite", action="store_true", help="set an existing job of this name aside")
    return parser


if __name__ == "__main__":
    sys.exit(main())
