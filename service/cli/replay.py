"""``gradguard replay``: runs the detector on a training log."""

import json
import math
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.table import Table
from typer import Argument, Option

from guard import DetectConfig
from guard.decide.advice import blindness
from guard.decide.replay import ReplayResult
from guard.decide.replay import replay as replay_trace
from guard.decide.trace import TraceReader
from jobs.errors import JobError
from jobs.spec.job_spec import JobSpec
from service.cli.options import JsonOption
from service.cli.plots import save_figure

ACTIONS = {"spike": "roll back", "nonfinite": "skip", "drift": "report", "vanishing": "report"}
SHOWN = 50


def replay(
    trace: Annotated[
        Path,
        Argument(
            help="A training log: CSV, JSON lines, trainer_state.json, or printed lines; may be gzipped."
        ),
    ],
    step: Annotated[str | None, Option(help="Column of the step; default: any usual name.")] = None,
    loss: Annotated[str | None, Option(help="Column of the loss; default: any usual name.")] = None,
    grad_norm: Annotated[
        str | None, Option(help="Column of the gradient norm; default: any usual name.")
    ] = None,
    spec: Annotated[
        Path | None, Option(help="Use the detector settings of this job's spec (guard.detect).")
    ] = None,
    plot: Annotated[
        Path | None, Option(help="Plot the log and its alarms to this file: .svg, .png, .pdf.")
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Run the detector on a training log: list every alarm and what the guard would have done."""
    config = JobSpec.load(spec).guard.detect if spec else DetectConfig()
    columns = {"step": step, "loss": loss, "grad_norm": grad_norm}
    try:
        result = replay_trace(trace, config, **columns)
        if plot:
            _draw(trace, result, plot)
    except OSError as error:
        raise JobError(f"{error.filename or trace}: {error.strerror}") from None
    if as_json:
        typer.echo(json.dumps(result.to_dict(), allow_nan=False))
    else:
        _show(result)


def _show(result: ReplayResult) -> None:
    console = Console(highlight=False)
    read = [f"{signal} from {name}" for signal, name in result.columns.items() if name not in (None, signal)]
    if result.columns["step"] is None:
        read.append("no column of the step: rows are counted from 0")
    if read:
        console.print("; ".join(read), markup=False, soft_wrap=True)
    entries = sorted([*result.alarms, *result.trends], key=lambda entry: entry["step"])
    if entries:
        table = Table("step", "verdict", "signal", "score", "baseline", "the guard would", box=None)
        for entry in entries[:SHOWN]:
            baseline = "" if entry["baseline"] is None else f"{entry['baseline']:.4g}"
            cells = (str(entry["step"]), entry["verdict"], entry["signal"], f"{entry['score']:.3g}", baseline)
            skipped = entry["step"] in result.skipped_first
            table.add_row(*cells, "skip" if skipped else ACTIONS[entry["verdict"]])
        console.print(table)
    if len(entries) > SHOWN:
        console.print(f"... and {len(entries) - SHOWN} more: --json has all")
    console.print(
        f"{result.rows} rows: {len(result.alarms)} alarms, "
        f"{result.suspects} suspect rows (each a skip or a clip), "
        f"{len(result.trends)} trends"
    )
    console.print(blindness(result.alarm_factor))


def _draw(trace: Path, result: ReplayResult, path: Path) -> None:
    from matplotlib.figure import Figure

    rows = list(TraceReader(trace, **result.columns))
    figure = Figure(figsize=(10, 4), layout="constrained")
    axes = figure.subplots()
    losses = [math.nan if row.loss is None else float(row.loss) for row in rows]
    axes.plot([row.step for row in rows], losses, linewidth=0.8, label="loss")
    for kind, color in (("spike", "C3"), ("nonfinite", "C1")):
        steps = [alarm["step"] for alarm in result.alarms if alarm["verdict"] == kind]
        for step in steps:
            axes.axvline(step, color=color, alpha=0.5, linewidth=1)
        if steps:
            axes.plot([], [], color=color, label=f"{kind} ({len(steps)})")
    axes.set(xlabel=result.columns["step"] or "row", ylabel=result.columns["loss"] or "", title=trace.name)
    axes.legend()
    save_figure(figure, path)
