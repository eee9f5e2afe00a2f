"""Shows a job while it runs: a live display in a terminal, plain lines elsewhere."""

import math
import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Self

from rich.console import Console, Group
from rich.live import Live
from rich.panel import Panel
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from guard.rows import as_float, as_int, as_text
from jobs.report.formats import UNKNOWN, as_mapping, count, duration, number, percent, plural
from jobs.report.summary import Summary, headline, metric_text, status_words

PLAIN_INTERVAL_S = 5.0
REMEMBERED_EVENTS = 512
STYLES = {"info": "cyan", "warning": "yellow", "error": "bold red"}
STATUS_STYLES = {
    "succeeded": "bold green",
    "failed": "bold red",
    "halted": "bold red",
    "stopped": "bold yellow",
}
COUNTERS = ("anomalies", "skips", "rollbacks", "steps_lost")


class LiveView:
    """Shows the status and the events of one job; a context manager.

    In a terminal a panel that is refreshed, with events above it. Elsewhere one line an event, and a status
    line at most every `PLAIN_INTERVAL_S` of `clock`. An event is shown once.
    """

    def __init__(self, console: Console, *, clock: Callable[[], float] = time.monotonic) -> None:
        self._console = console
        self._clock = clock
        refreshes = console.is_terminal and not console.is_dumb_terminal
        self._live = Live(console=console, auto_refresh=False) if refreshes else None
        self._status: Mapping[str, Any] | None = None
        self._printed: Mapping[str, Any] | None = None
        self._printed_at = -math.inf
        self._seen: deque[tuple[Any, ...]] = deque(maxlen=REMEMBERED_EVENTS)

    def update(self, status: Mapping[str, Any] | None, events: Sequence[Mapping[str, Any]]) -> None:
        """Shows new status and events; without a status the last one stays."""
        self._status = status if status is not None else self._status
        for event in events:
            self._show_event(event)
        if self._live is not None:
            self._live.update(status_panel(self._status), refresh=True)
        elif self._clock() - self._printed_at >= PLAIN_INTERVAL_S:
            self._print_status()

    def __enter__(self) -> Self:
        if self._live is not None:
            self._live.start()
            self._live.update(status_panel(None), refresh=True)
        return self

    def __exit__(self, *_: object) -> None:
        if self._live is not None:
            self._live.stop()
        elif self._status is not self._printed:
            self._print_status()

    def _print_status(self) -> None:
        if self._status is not None:
            _print(self._console, Text(status_line(self._status)))
            self._printed, self._printed_at = self._status, self._clock()

    def _show_event(self, event: Mapping[str, Any]) -> None:
        key = (event.get("seq"), event.get("time"), event.get("text"))
        if key not in self._seen:
            self._seen.append(key)
            style = STYLES.get(as_text(event.get("level")), "") if self._live is not None else ""
            _print(self._console, Text(event_line(event), style=style))


def print_summary(console: Console, result: Mapping[str, Any], job_dir: Path) -> None:
    """The end of a job in a few lines: its outcome, what the guard did, where its files are."""
    summary = Summary.from_row(result)
    title = Text(f"{one_line(as_text(result.get('job'), job_dir.name))}: ", style="bold")
    status = one_line(status_words(summary.status)).lower()
    title.append(status, style=STATUS_STYLES.get(summary.status, "bold"))
    _print(console, Text())
    _print(console, title)
    _print(console, Text(headline(summary)))
    lines = {
        "error": one_line(summary.error),
        "metrics": ", ".join(f"{name} {metric_text(name, value)}" for name, value in summary.metrics.items()),
        "guard": _guard_line(summary),
        "samples": _place(job_dir, as_text(result.get("samples"))),
        "report": str(job_dir / as_text(result.get("report"), "report.html")),
        "result": str(job_dir / "result.json"),
        "incidents": str(job_dir / "incidents.jsonl") if summary.anomalies else "",
        "checkpoint": _place(job_dir, summary.checkpoint),
        "continue": one_line(summary.resume),
    }
    for label, text in lines.items():
        if text:
            _print(console, Text.assemble((f"  {label:<11}", "dim"), text))


def status_line(status: Mapping[str, Any]) -> str:
    """One line of key=value without unknown keys; scripts may rely on its form."""
    counters = as_mapping(status.get("counters"))
    fields = {
        "phase": as_text(status.get("phase")),
        "step": _of(status.get("step"), status.get("total_steps")),
        "epoch": _of(status.get("epoch"), status.get("total_epochs")),
        "loss": _plain(status.get("loss")),
        "grad_norm": _plain(status.get("grad_norm")),
        "clip_share": _plain(status.get("clip_share")),
        "steps_per_second": _plain(status.get("steps_per_second")),
        "eta_seconds": _whole(status.get("eta_seconds")),
        **{name: _whole(counters.get(name)) for name in COUNTERS},
        **{name: _plain(value) for name, value in as_mapping(status.get("eval")).items()},
    }
    shown = [f"{name}={value}" for name, value in fields.items() if value]
    return one_line(" ".join(["status", *shown]))


def event_line(event: Mapping[str, Any]) -> str:
    """Time, level, step and text; the step only where the text does not start with one."""
    seconds = as_float(event.get("time"))
    at = time.strftime("%H:%M:%S", time.localtime(seconds)) if seconds is not None else "--:--:--"
    text = one_line(as_text(event.get("text")))
    step = as_int(event.get("step"))
    where = "" if step is None or text.startswith("step ") else f"step {step}: "
    return f"{at} {one_line(as_text(event.get('level'), 'info')):<7} {where}{text}"


def status_panel(status: Mapping[str, Any] | None) -> Panel:
    """The live display: a bar and rows of figures."""
    if status is None:
        return Panel(Text("waiting for the job to start", style="dim"), title="gradguard", title_align="left")
    title = Text.assemble((one_line(as_text(status.get("job"))), "bold"), " ", as_text(status.get("phase")))
    return Panel(
        Group(_bar(status), _figures(status), *_evaluation(status), _counters(status)),
        title=title,
        title_align="left",
    )


def one_line(text: str) -> str:
    """Text without line breaks and control characters."""
    return "".join(letter if letter.isprintable() else " " for letter in " ".join(text.split()))


def _bar(status: Mapping[str, Any]) -> Table:
    step, total = as_int(status.get("step")) or 0, as_int(status.get("total_steps"))
    row = Table.grid(padding=(0, 1), expand=True)
    row.add_column(ratio=1)
    row.add_column(justify="right", no_wrap=True)
    share = percent(step / total) if total else ""
    epoch = _of(status.get("epoch"), status.get("total_epochs"))
    words = [_of(step, total, group=True), share, f"epoch {epoch}" if epoch else ""]
    bar = ProgressBar(total=total or 1, completed=min(step, total or 1) if total else 0)
    row.add_row(bar, Text("  ".join(word for word in words if word)))
    return row


def _figures(status: Mapping[str, Any]) -> Text:
    items = [
        ("loss", number(as_float(status.get("loss"))), "blue"),
        ("grad norm", number(as_float(status.get("grad_norm"))), "green"),
        ("clipped", percent(as_float(status.get("clip_share"))), ""),
        ("steps/s", number(as_float(status.get("steps_per_second"))), ""),
        ("left", duration(as_float(status.get("eta_seconds"))), ""),
    ]
    return _pairs([item for item in items if item[1] != UNKNOWN])


def _evaluation(status: Mapping[str, Any]) -> list[Text]:
    """A row of the last evaluation, if there was one."""
    metrics = [(str(name), as_float(value)) for name, value in as_mapping(status.get("eval")).items()]
    known = [(name, value) for name, value in metrics if value is not None and name != "epoch"][:3]
    pairs = [(name.replace("_", " "), metric_text(name, value), "magenta") for name, value in known]
    return [_pairs(pairs)] if pairs else []


def _counters(status: Mapping[str, Any]) -> Text:
    counters = as_mapping(status.get("counters"))
    known = {name: as_int(counters.get(name)) or 0 for name in COUNTERS}
    items = [(name.replace("_", " "), count(n), "yellow" if n else "dim") for name, n in known.items()]
    share = as_float(status.get("guard_share"))
    return _pairs([*items, *([("guard time", percent(share), "dim")] if share is not None else [])])


def _pairs(items: Sequence[tuple[str, str, str]]) -> Text:
    line = Text()
    for index, (label, value, style) in enumerate(items):
        line.append("   " if index else "").append(f"{label} ", style="dim")
        line.append(one_line(value), style=style)
    return line


def _place(job_dir: Path, checkpoint: str) -> str:
    """The path of a checkpoint: in the job's folder, or a URL."""
    return checkpoint if "://" in checkpoint or not checkpoint else str(job_dir / checkpoint)


def _guard_line(summary: Summary) -> str:
    counts = [
        plural(summary.anomalies or 0, "anomaly", "anomalies"),
        plural(summary.skips or 0, "skip"),
        plural(summary.rollbacks or 0, "rollback"),
        f"{plural(summary.steps_lost or 0, 'step')} lost",
    ]
    if summary.guard_share is not None:
        counts.append(f"{percent(summary.guard_share)} of the step time")
    return ", ".join(counts)


def _print(console: Console, text: Text) -> None:
    """One line stays one line, however long: lines are grepped, and commands are copied."""
    console.print(text, soft_wrap=True, highlight=False, markup=False, emoji=False)


def _of(part: Any, whole: Any, *, group: bool = False) -> str:
    known = [as_int(part), as_int(whole)]
    return "/".join(f"{value:,}" if group else str(value) for value in known if value is not None)


def _plain(value: Any) -> str:
    known = as_float(value)
    return "" if known is None else f"{known:.4g}"


def _whole(value: Any) -> str:
    known = as_int(value)
    return "" if known is None else str(known)
