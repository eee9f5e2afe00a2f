"""``gradguard sweep``: many jobs that differ in a few fields."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console
from typer import Argument, Option

from jobs.errors import EXIT_CODES
from jobs.report.formats import count, number
from service.cli.options import JsonOption
from service.cli.tables import PlainTable

if TYPE_CHECKING:
    from jobs.sweep.spec import SweepSpec
    from jobs.sweep.table import Trial


def sweep(
    spec: Annotated[Path, Argument(help="The sweep's spec: base, parameters, trials, metric.")],
    address: Annotated[
        str | None, Option(help="host:port of a Ray cluster. Default: an embedded one.")
    ] = None,
    resume: Annotated[bool, Option("--resume", help="Continue a sweep that was interrupted.")] = False,
    dry_run: Annotated[bool, Option("--dry-run", help="Only check and print what would be trained.")] = False,
    as_json: JsonOption = False,
) -> None:
    """Train a job with many settings on Ray Tune, ending bad ones early; print a table, the best first."""
    from jobs.spec.imported import find_modules_in
    from jobs.sweep.spec import SweepSpec

    wanted = SweepSpec.load(spec)
    find_modules_in(spec.parent)
    jobs = wanted.jobs()
    if dry_run:
        for job, values in zip(jobs, wanted.drawn(), strict=True):
            typer.echo(json.dumps({"name": job.name, **values}))
        return
    from jobs.sweep.run import run_sweep

    console = Console(stderr=as_json, soft_wrap=True, highlight=False)
    trials = run_sweep(
        wanted, show=lambda line: console.print(line, markup=False), address=address, resume=resume
    )
    if as_json:
        typer.echo(json.dumps([trial.to_row() for trial in trials]))
    else:
        _print(console, wanted, trials, spec)
    raise typer.Exit(_code(trials))


def _code(trials: list[Trial]) -> int:
    if any(trial.status in ("stopped", "waiting") for trial in trials):
        return EXIT_CODES["stopped"]
    return 0 if any(trial.value is not None for trial in trials) else EXIT_CODES["failed"]


def _print(console: Console, wanted: SweepSpec, trials: list[Trial], path: Path) -> None:
    names = list(wanted.parameters)
    shown = ["trial", *names, wanted.metric_name, "steps", "incidents", "rollbacks", "status"]
    table = PlainTable(*shown, box=None)
    for trial in trials:
        figures = (trial.steps, trial.incidents, trial.rollbacks)
        counts = ["–" if figure is None else count(figure) for figure in figures]
        value = "–" if trial.value is None else number(trial.value)
        table.add_row(
            str(trial.number), *(trial.parameters[name] for name in names), value, *counts, trial.status
        )
    console.print(table)
    for trial in trials:
        if trial.error:
            console.print(f"trial {trial.number}: {trial.error}", markup=False)
    if trials and trials[0].value is not None:
        console.print(f"best: {trials[0].folder}", markup=False)
    if any(trial.status in ("stopped", "waiting") for trial in trials):
        console.print(f"continue: gradguard sweep {path} --resume", markup=False)
