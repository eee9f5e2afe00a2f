"""Commands that read jobs: list, status, incidents, report. On a folder they need no server."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console
from rich.live import Live
from rich.table import Table
from rich.text import Text
from typer import Argument, Option

from jobs.client.job_files import JobFiles
from jobs.errors import JobError
from jobs.report.formats import as_mapping
from jobs.run_dir.paths import METRICS, SPEC
from jobs.run_dir.reader import RunReader
from service.cli.jobs import client_at
from service.cli.options import AddressOption, JsonOption, writable
from service.cli.tables import PlainTable, plain

if TYPE_CHECKING:
    from jobs.client import Job
    from jobs.client.models import JobInfo

REFRESH_S = 1.0
SHOWN = 500
"""Incidents of a table."""
STYLES = {"succeeded": "green", "running": "cyan", "stopped": "yellow", "waiting": "magenta"}
STYLES |= dict.fromkeys(("failed", "halted"), "red")
WatchOption = Annotated[
    bool, Option("--watch", help="Show it again whenever it has changed, until it ends or Ctrl-C.")
]


def list_jobs(
    address: AddressOption = None,
    state: Annotated[list[str] | None, Option("--status", help="Only jobs of this status.")] = None,
    name: Annotated[str | None, Option(help="Only jobs whose id contains this.")] = None,
    tag: Annotated[str | None, Option(help="Only jobs with this tag.")] = None,
    limit: Annotated[int, Option(min=1, help="How many at most.")] = 50,
    watch: WatchOption = False,
    as_json: JsonOption = False,
) -> None:
    """List jobs, the newest first."""
    client = client_at(address)

    def view() -> View:
        jobs = client.list(status=state or (), name=name, tag=tag, limit=limit)
        text = json.dumps([job.info.model_dump(exclude_none=True) for job in jobs]) if as_json else None
        return View(text or _table(jobs), over=not watch)

    _show(view)


def status(
    job_id: str, address: AddressOption = None, watch: WatchOption = False, as_json: JsonOption = False
) -> None:
    """Show the status of a job, and what it waits for or why it ended."""
    client = client_at(address)

    def view() -> View:
        job = client.get(job_id)
        line = ": ".join(filter(None, (job.status, job.message, _figures(job.info))))
        text = job.info.model_dump_json() if as_json else _table([job]) if watch else line
        return View(text, over=job.ended or not watch)

    _show(view)


def incidents(
    job: Annotated[str, Argument(help="Id of a job, its folder, or a journal such as incidents.jsonl.")],
    address: AddressOption = None,
    limit: Annotated[
        int | None, Option(min=1, help=f"The newest N. Default: {SHOWN}; with --json, all.")
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """List what the guard acted on."""
    most = limit or (None if as_json else SHOWN)
    rows = _incident_rows(job, address, None if most is None else most + 1)
    if as_json:
        typer.echo(json.dumps(rows[-most:] if most else rows))
        return
    earlier, rows = most is not None and len(rows) > most, rows[-most:] if most else rows
    several = len({row.get("job") for row in rows}) > 1
    columns = ("step", "verdict", "signal", "value", "baseline", "action", "to", "outcome")
    table = PlainTable(*(("job", *columns) if several else columns), box=None)
    for row in rows:
        numbers = [_number(row.get(key)) for key in ("value", "baseline")]
        words = [str(row.get(key) or "") for key in ("verdict", "signal")]
        rest = [str(row.get("action") or ""), _text(row.get("rolled_back_to")), str(row.get("outcome") or "")]
        of_job = [_text(row.get("job"))] if several else []
        table.add_row(*of_job, _text(row.get("step")), *words, *numbers, *rest)
    _console().print(table if rows else "no incidents")
    for row in rows:
        if row.get("by_rate") or row.get("verdict") == "warning":  # its factor is in no column
            _console().print(
                plain(f"step {_text(row.get('step'))}: {row.get('reason') or ''}"), soft_wrap=True
            )
    if earlier:
        _console().print(f"earlier ones: --limit shows more than the newest {most}, --json has all")


def report(
    job: Annotated[
        str, Argument(help="The folder of a job, such as runs/fashion, its id, or a journal of incidents.")
    ],
    address: AddressOption = None,
    to: Annotated[Path | None, Option(help="The file; default: in the folder of the job, else here.")] = None,
    png: Annotated[
        bool, Option("--png", help="Only the picture of the main chart, report.png, for a chat.")
    ] = False,
    as_json: JsonOption = False,
) -> None:
    """Write the report of a job, finished or not: report.html, and report.png beside it."""
    here = address is None and _is_here(job)
    to = to and writable(to)
    if png and not here:
        raise JobError(f"{job} is not a folder: --png draws from the files of a job, such as runs/fashion")
    if here:
        from jobs.report import write_picture, write_report

        source = _journal(Path(job)) if Path(job).is_file() else job_folder(Path(job))
        try:
            path = (write_picture if png else write_report)(source, to)
        except OSError as error:
            why = f"{error.strerror or error}; name another file with --to"
            raise JobError(f"cannot write {to or f'the report of {source}'}: {why}") from None
    else:
        path = _fetched(job, address, to)
    typer.echo(json.dumps({"report": str(path)}) if as_json else str(path))


def _incident_rows(job: str, address: str | None, newest: int | None) -> list[dict[str, Any]]:
    """Of a job, or of a bare journal; at most the newest N."""
    if address is None and _is_here(job):
        path = Path(job).absolute()
        if path.is_file():
            start = 0 if newest is None else -1
            return JobFiles(_journal(path)).incident_rows(start=start, limit=newest)
        address, job = str(path.parent), path.name
    return client_at(address).incidents(job, newest)


def _journal(path: Path) -> Path:
    """The path, if it is a file of incidents.

    Raises:
        JobError: it is another one.
    """
    if path.stat().st_size and not RunReader(path).incidents(start=-1, limit=1):
        raise JobError(f"{path} is no journal: no row of it is an incident; give the journal= of a guard")
    return path


def _is_here(job: str) -> bool:
    """What looks like a path is one: the ids of jobs have no slash."""
    if "://" in job:
        from jobs.run_dir.storage import shown

        raise JobError(
            f"{shown(job)} is a URL, which has only checkpoints: name the job's folder, as in "
            "runs/NAME, or its id; gradguard checkpoints reads a URL"
        )
    return "/" in job or Path(job).exists()


def job_folder(path: Path) -> Path:
    """The path, if it is the folder of a job.

    Raises:
        JobError: it is not.
    """
    if not RunReader(path).exists():
        raise JobError(f"{path} is not the folder of a job: it has neither {SPEC} nor {METRICS}")
    return path


def _fetched(job_id: str, address: str | None, to: Path | None) -> Path:
    path, text = to or Path(f"{job_id}-report.html"), client_at(address).report(job_id)
    try:
        path.write_text(text, encoding="utf-8")
    except OSError as error:
        raise JobError(f"cannot write {path}: {error.strerror}; set --to to another file") from None
    return path


def _table(jobs: list[Job]) -> Table:
    table = PlainTable(
        "id", "status", "step", "loss", "accuracy", "duration", "since", "what", "folder", box=None
    )
    for job in jobs:
        info, status, step, loss = job.info, Text(job.status, STYLES.get(job.status, "default")), "", ""
        if (progress := job.progress) is not None:
            total = "" if progress.total_steps is None else f"/{progress.total_steps}"
            step, loss = f"{progress.step}{total}", _number(progress.loss)
        result = info.result or {}
        if not step and result.get("steps") is not None:
            step = str(result["steps"])
        since = _ago(info.ended or info.started or info.created)
        took = _duration(info)
        table.add_row(job.id, status, step, loss, _accuracy(result), took, since, info.reason, info.folder)
    return table


def _figures(info: JobInfo) -> str:
    """How a job ended: steps, accuracy, duration, folder."""
    if not info.result:
        return ""
    parts = [f"{info.result.get('steps')} steps", _duration(info)]
    if accuracy := _accuracy(info.result):
        parts.insert(1, f"accuracy {accuracy}")
    return ", ".join([*filter(None, parts), *([f"in {info.folder}"] if info.folder else [])])


def _accuracy(result: Mapping[str, Any]) -> str:
    """The final evaluation's, as ``87.2 %``."""
    value = as_mapping(result.get("metrics")).get("test_accuracy")
    return f"{100 * value:.1f} %" if isinstance(value, int | float) else ""


def _duration(info: JobInfo) -> str:
    """What a job that ended took."""
    seconds = (info.result or {}).get("seconds")
    if not isinstance(seconds, int | float):
        known = info.started is not None and info.ended is not None
        seconds = info.ended - info.started if known else None  # type: ignore[operator]
    return "" if seconds is None else _span(seconds)


@dataclass(frozen=True, slots=True)
class View:
    """What is shown now, and whether it is final."""

    shown: Table | str
    over: bool


def _show(view: Callable[[], View]) -> None:
    """On a terminal in place; otherwise, or as JSON, printed again whenever it has changed."""
    first, console, last = view(), _console(), None
    if console.is_terminal and not first.over and not isinstance(first.shown, str):
        with Live(console=console, auto_refresh=False) as live:
            for now in _until_over(first, view):
                live.update(now.shown, refresh=True)
        return
    for now in _until_over(first, view):
        text = now.shown if isinstance(now.shown, str) else _text_of(console, now.shown)
        if text != last:
            print(text, flush=True)
            last = text


def _until_over(now: View, view: Callable[[], View]) -> Iterator[View]:
    yield now
    while not now.over:
        time.sleep(REFRESH_S)
        yield (now := view())


def _text_of(console: Console, table: Table) -> str:
    with console.capture() as captured:
        console.print(table)
    return captured.get().rstrip("\n")


def _console() -> Console:
    """Wide lines where the output is no terminal."""
    console = Console(highlight=False)
    return console if console.is_terminal else Console(highlight=False, width=200)


def _number(value: object) -> str:
    return f"{value:.4g}" if isinstance(value, int | float) else _text(value)


def _text(value: object) -> str:
    return "" if value is None else str(value)


def _ago(when: float | None) -> str:
    if when is None:
        return ""
    return _span(time.time() - when)


def _span(seconds: float) -> str:
    seconds = max(0.0, seconds)
    for unit, size in (("d", 86_400), ("h", 3600), ("min", 60)):
        if seconds >= 2 * size:
            return f"{seconds / size:.0f} {unit}"
    return f"{seconds:.0f} s"
