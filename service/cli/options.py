"""Arguments and options that several commands share."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

SpecArgument = Annotated[Path, typer.Argument(help="The job's spec, YAML or JSON.")]
SetOption = Annotated[
    list[str] | None, typer.Option("--set", metavar="FIELD=VALUE", help="Override a field of the spec.")
]
JsonOption = Annotated[bool, typer.Option("--json", help="Print JSON instead of text.")]
AddressOption = Annotated[
    str | None,
    typer.Option(
        "--address",
        envvar=["GRADGUARD_ADDRESS", "RAY_API_SERVER_ADDRESS"],
        help="URL of a service or of Ray's dashboard, or a folder of jobs (read-only). "
        "Default: a service, else Ray, on this machine.",
    ),
]
