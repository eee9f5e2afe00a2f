"""``gradguard replay``: runs the detector on a training log."""

import json
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from typer import Argument, Option

from guard import DetectConfig
from guard.decide.advice import blindness, taken_for, would
from guard.decide.replay import ReplayResult, replay_rows
from guard.logs.trace import TraceReader
from jobs.errors import FAILED, JobError
from jobs.spec.job_spec import JobSpec
from service.cli.detector_settings import detector_settings
from service.cli.options import JsonOption
from service.cli.plots import draw_alarms
from service.cli.tables import PlainTable

SHOWN = 50


class FailOn(StrEnum):
    """What makes the exit code 1; each includes those above it."""

    nonfinite = "nonfinite"
    spike = "spike"
    trend = "trend"
    suspect = "suspect"


def replay(
    trace: Annotated[
        Path,
        Argument(
            help="A training log, recognized by its content: CSV, TSV, JSON, JSON lines, printed lines, an "
            "event file or folder of TensorBoard, a run of MLflow; may be gzipped; - is standard input."
        ),
    ],
    step: Annotated[str | None, Option(help="Column of the step; default: any usual name.")] = None,
    loss: Annotated[str | None, Option(help="Column of the loss; default: any usual name.")] = None,
    grad_norm: Annotated[
        str | None, Option(help="Column of the gradient norm; default: any usual name.")
    ] = None,
    regex: Annotated[
        str | None,
        Option(help="Read each line by this expression, with groups (?P<step>) (?P<loss>) (?P<grad_norm>)."),
    ] = None,
    spec: Annotated[
        Path | None, Option(help="Use the detector settings of this job's spec (guard.detect).")
    ] = None,
    overrides: Annotated[
        list[str] | None, Option("--set", metavar="FIELD=VALUE", help="A setting of the detector: sigmas=8.")
    ] = None,
    compare: Annotated[
        list[str] | None,
        Option(metavar="FIELD=VALUE", help="Also run with this setting changed, and show what differs."),
    ] = None,
    fail_on: Annotated[
        FailOn | None,
        Option(help="Exit with code 1 if there is one: nonfinite, spike (or nonfinite), trend, suspect."),
    ] = None,
    plot: Annotated[
        Path | None,
        Option("--plot", "--picture", help="Draw the log and its alarms to this file: .svg, .png, .pdf."),
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Run the detector on a training log: list every alarm and what the guard would have done."""
    config = detector_settings(JobSpec.load(spec).guard.detect if spec else DetectConfig(), overrides or [])
    other = detector_settings(config, compare, option="--compare") if compare else None
    reader = TraceReader(trace, step=step, loss=loss, grad_norm=grad_norm, regex=regex)
    try:
        rows = list(reader)
    except OSError as error:
        raise JobError(f"{error.filename or trace}: {error.strerror}") from None
    results = [replay_rows(rows, settings) for settings in (config, other) if settings is not None]
    for result in results:
        result.kind, result.columns = reader.kind, reader.columns
    if plot:
        draw_alarms(rows, results[0], reader.path.name, plot)
    if as_json:
        typer.echo(json.dumps(_document(results, compare), allow_nan=False))
    else:
        _show(results, compare)
    if fail_on and _found(results[0], fail_on):
        raise typer.Exit(FAILED)


def _document(results: list[ReplayResult], compare: list[str] | None) -> dict[str, Any]:
    document = results[0].to_dict()
    for other in results[1:]:
        document["compared"] = {"settings": compare, **other.to_dict()}
    return document


def _found(result: ReplayResult, what: FailOn) -> bool:
    nonfinite = [alarm for alarm in result.alarms if alarm["verdict"] == "nonfinite"]
    counts = {
        FailOn.nonfinite: len(nonfinite),
        FailOn.spike: len(result.alarms),
        FailOn.trend: len(result.trends),
        FailOn.suspect: result.suspects,
    }
    return any(counts[kind] for kind in list(FailOn)[: list(FailOn).index(what) + 1])


def _show(results: list[ReplayResult], compare: list[str] | None) -> None:
    console, result = Console(highlight=False), results[0]
    console.print(taken_for(result), markup=False, soft_wrap=True)
    entries = sorted([*result.alarms, *result.trends], key=lambda entry: entry["step"])
    if entries:
        table = PlainTable("step", "verdict", "signal", "score", "baseline", "the guard would", box=None)
        for entry in entries[:SHOWN]:
            baseline = "" if entry["baseline"] is None else f"{entry['baseline']:.4g}"
            cells = (str(entry["step"]), entry["verdict"], entry["signal"], f"{entry['score']:.3g}", baseline)
            table.add_row(*cells, would(result, entry))
        console.print(table)
    if len(entries) > SHOWN:
        console.print(f"... and {len(entries) - SHOWN} more: --json has all")
    console.print(_counts(result))
    console.print(blindness(result.alarm_factor))
    for other in results[1:]:
        title = f"with {', '.join(compare or [])}: {_counts(other)}"
        for line in (title, *_differences(result, other)):
            console.print(line, markup=False, soft_wrap=True)


def _counts(result: ReplayResult) -> str:
    return (
        f"{_many(result.rows, 'row')}: {_many(len(result.alarms), 'alarm')}, "
        f"{_many(result.suspects, 'suspect row')} (each a skip or a clip), "
        f"{_many(len(result.trends), 'trend')}"
    )


def _many(count: int, what: str) -> str:
    return f"{count} {what}{'' if count == 1 else 's'}"


def _differences(one: ReplayResult, other: ReplayResult) -> list[str]:
    """The steps of the alarms that only one of two settings has."""
    first, second = ({alarm["step"]: None for alarm in result.alarms} for result in (one, other))
    sides = (("only as it is", first, second), ("only with the change", second, first))
    lines = []
    for side, here, there in sides:
        steps = [str(step) for step in here if step not in there]
        if steps:
            more = f" and {len(steps) - SHOWN} more" if len(steps) > SHOWN else ""
            lines.append(f"alarms {side}: {', '.join(steps[:SHOWN])}{more}")
    return lines or ["the same alarms with both"]
