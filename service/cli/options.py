"""Arguments and options that several commands share."""

import sys
from contextlib import AbstractContextManager, nullcontext, redirect_stdout
from pathlib import Path
from typing import Annotated

from typer import Argument, Option

from jobs.errors import JobError

SpecArgument = Annotated[Path, Argument(help="The job's spec, YAML or JSON.")]
SetOption = Annotated[
    list[str] | None, Option("--set", metavar="FIELD=VALUE", help="Override a field of the spec.")
]
JsonOption = Annotated[bool, Option("--json", help="Print JSON instead of text.")]
AddressOption = Annotated[
    str | None,
    Option(
        "--address",
        envvar=["GRADGUARD_ADDRESS", "RAY_API_SERVER_ADDRESS"],
        help="URL of a service or of Ray's dashboard, or a folder of jobs (read-only). "
        "Default: a service, else Ray, on this machine.",
    ),
]


def prints_apart(as_json: bool) -> AbstractContextManager[object]:
    """In this block what the code of a job prints is on standard error, where standard output is JSON."""
    return redirect_stdout(sys.stderr) if as_json else nullcontext()


def writable(path: Path) -> Path:
    """The file that an option names; what is there and is no file, as a device or a folder, is not replaced.

    Raises:
        JobError: it is no regular file.
    """
    if path.exists() and not path.is_file():
        raise JobError(f"cannot write {path}: it is no file; name another one with --to")
    return path
