"""``gradguard compare``: how two jobs differ."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console
from rich.markup import escape
from rich.table import Table
from rich.text import Text
from typer import Argument, Option

from guard.rows import strict
from jobs.errors import JobError
from service.cli.options import writable
from service.cli.query import job_folder

if TYPE_CHECKING:
    from jobs.report.compare import Comparison

JobArgument = Annotated[Path, Argument(help="The folder of a job, such as runs/fashion.")]


def compare(
    first: JobArgument,
    second: JobArgument,
    to: Annotated[
        Path | None,
        Option(help="The HTML file; default: compare-SECOND.html in the folder of the first job."),
    ] = None,
    as_json: Annotated[bool, Option("--json", help="Print JSON instead of a table.")] = False,
) -> None:
    """Put two jobs side by side: a table here, and one HTML file with the curves."""
    from jobs.report.compare import compare as compare_jobs
    from jobs.report.compare import write_comparison

    comparison = compare_jobs(job_folder(first), job_folder(second))
    path = writable(to) if to else first / f"compare-{second.resolve().name}.html"
    try:
        write_comparison(comparison, path)
    except OSError as error:
        why = error.strerror or error
        raise JobError(f"cannot write {path}: {why}; name another file with --to") from None
    if as_json:
        typer.echo(json.dumps(strict({**comparison.as_json(), "page": str(path)}), indent=2))
    else:
        _print(comparison)
        typer.echo(str(path))


def _print(comparison: Comparison) -> None:
    console = Console()
    names = [escape(name) for name in comparison.names]
    table = Table("", *names, "difference", box=None)
    for figure in comparison.figures:
        table.add_row(figure.name, *figure.texts)
    console.print(table)
    if comparison.spec:
        spec = Table("spec", *names, box=None)
        for name, values in comparison.spec.items():
            spec.add_row(Text(name), *map(Text, values))
        console.print()
        console.print(spec)
