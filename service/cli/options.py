"""Arguments and options that several commands share."""

from pathlib import Path
from typing import Annotated

from typer import Argument, Option

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
