"""The key figures of a run: from its result, or from its metrics as long as there is none."""

from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from guard.rows import Row
from jobs.report.data import Run, Steps, read_run
from jobs.report.formats import accuracy, duration, listing, number, plural
from jobs.report.profile import Gpu
from jobs.report.words import STATUSES
from jobs.run_dir.result import COUNTS

COUNTED = (*COUNTS, "guard_share", "seconds")
"""The figures that rows and journal have too."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Summary(Row):
    """Figures of the whole run, as in result.json; None where the files do not have them.

    ``anomalies`` counts attempts in which anything was wrong, corrected or not; ``incidents`` the entries of
    the journal. They differ where an exclusion of ranks lasts: one incident, and an anomaly at each attempt.
    """

    status: str = "unfinished"
    steps: int | None = None
    attempts: int | None = None
    epochs: int | None = None
    metrics: dict[str, float] = field(default_factory=dict)
    anomalies: int | None = None
    incidents: int | None = None
    skips: int | None = None
    rollbacks: int | None = None
    clips: int | None = None
    steps_lost: int | None = None
    guard_share: float | None = None
    seconds: float | None = None
    world_size: int | None = None
    gpu: Gpu | None = None
    checkpoint: str = ""
    error: str = ""
    resume: str = ""
    versions: dict[str, str] = field(default_factory=dict)


def summarize(run: Run) -> Summary:
    """The figures of the result; those that it lacks, as where a run was killed, from rows and journal."""
    if run.result is None:
        return from_metrics(run)
    reported = Summary.from_row(run.result)
    if not len(run.steps):
        return reported
    counted = from_metrics(run)
    unknown = {None} if reported.attempts else {None, 0}  # without attempts its zeros mean "unknown"
    missing = [name for name in COUNTED if getattr(reported, name) in unknown]
    return replace(reported, **{name: getattr(counted, name) for name in missing})


def figures_of_rows(job_dir: Path) -> dict[str, Any]:
    """The figures of result.json that rows and journal of a job have: only those that are known."""
    run = read_run(job_dir)
    summary = from_metrics(run)
    figures = {name: getattr(summary, name) for name in COUNTED if name != "seconds"}
    known = {name: value for name, value in figures.items() if value is not None}
    return {**known, "metrics": summary.metrics} if summary.attempts else {}


def from_metrics(run: Run) -> Summary:
    """What the rows and the journal so far add up to."""
    steps, last = run.steps, run.evaluations[-1] if run.evaluations else None
    rollbacks = np.isfinite(steps.rolled_back_to)
    return Summary(
        steps=_last(steps.step),
        attempts=_last(steps.attempt),
        metrics={name: value for name, value in last.metrics.items() if name != "epoch"} if last else {},
        anomalies=_anomalies(run),
        incidents=len(run.incident_attempts),
        skips=int(steps.skipped.sum()),
        rollbacks=int(rollbacks.sum()),
        clips=int(steps.clipped.sum()),
        steps_lost=_steps_lost(steps),
        guard_share=_guard_share(steps),
        seconds=_elapsed(steps),
        world_size=len(run.ranks.names) or None,
    )


def headline(summary: Summary) -> str:
    """How the run ended, in a sentence."""
    done = plural(summary.steps, "step") if summary.steps is not None else ""
    took = f" in {duration(summary.seconds)}" if summary.seconds else ""
    reached = f" and reached {best(summary)}" if best(summary) else ""
    if summary.status == "succeeded":
        return f"The run finished {done or 'its steps'}{took}{reached}."
    after = f" after {done}{took}" if done else ""
    if summary.status == "failed":
        return f"The run failed{after}."
    if summary.status == "halted":
        return f"The guard halted the run{after}: it kept failing faster than it could be repaired."
    if summary.status == "stopped":
        return f"The run was stopped{after}."
    figures = f" These are its figures{after}." if after else ""
    return f"The run is still going, or it was killed: there is no result yet.{figures}"


def guard_words(summary: Summary) -> str:
    """What the guard did over the whole run, in a sentence."""
    counts = ((summary.skips, "skip"), (summary.rollbacks, "rollback"))
    deeds = [plural(quantity, noun) for quantity, noun in counts if quantity]
    if not deeds and summary.anomalies:
        return f"The guard saw {plural(summary.anomalies, 'anomaly', 'anomalies')} and had to repair nothing."
    if not deeds:
        return ""
    lost = f"; {plural(summary.steps_lost, 'step was', 'steps were')} lost" if summary.steps_lost else ""
    return f"The guard stepped in: {listing(deeds)}{lost}."


def best(summary: Summary) -> str:
    """The final evaluation in words: a test accuracy of 88.0 %."""
    if "test_accuracy" in summary.metrics:
        return f"a test accuracy of {accuracy(summary.metrics['test_accuracy'])}"
    if "test_loss" in summary.metrics:
        return f"a test loss of {number(summary.metrics['test_loss'])}"
    return ""


def status_words(status: str) -> str:
    return STATUSES.get(status, status)


def heading(metric: str) -> str:
    return metric.replace("_", " ").capitalize()


def metric_text(name: str, value: float) -> str:
    return accuracy(value) if name.endswith("accuracy") else number(value)


def _last(column: Any) -> int | None:
    return int(column[-1]) if len(column) and np.isfinite(column[-1]) else None


def _anomalies(run: Run) -> int:
    """Attempts in which anything was wrong: by their rows, or by an incident where rows lack it."""
    attempts = set(run.steps.attempt[run.steps.anomalous].astype(int).tolist())
    known = attempts.union(attempt for attempt in run.incident_attempts if attempt is not None)
    return len(known) + run.incident_attempts.count(None)


def _steps_lost(steps: Steps) -> int:
    """The steps that each rollback discarded: from the step before it to its target."""
    places = np.flatnonzero(np.isfinite(steps.rolled_back_to[1:])) + 1
    back = steps.step[places - 1] - steps.rolled_back_to[places]
    return int(np.nansum(back))


def _guard_share(steps: Steps) -> float | None:
    known = np.isfinite(steps.guard_seconds) & np.isfinite(steps.step_seconds)
    total = float(steps.step_seconds[known].sum())
    return float(steps.guard_seconds[known].sum()) / total if total > 0 else None


def _elapsed(steps: Steps) -> float | None:
    known = steps.time[np.isfinite(steps.time)]
    return float(known[-1] - known[0]) if len(known) > 1 else None
