"""Where the time of a run went, and what of it the guard took."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from jobs.report.data import Run, Steps
from jobs.report.formats import duration, number, percent, plural
from jobs.report.series import Flags, Floats
from jobs.report.summary import Summary


@dataclass(frozen=True, slots=True)
class Share:
    """One part of the time: seconds, its share of the whole (None where there is none), and what it is."""

    name: str
    seconds: float
    share: float | None
    note: str

    @property
    def text(self) -> str:
        """The share in words."""
        return "" if self.share is None else percent(self.share)

    @property
    def time(self) -> str:
        """The seconds in words, those of a short restore too."""
        return duration(self.seconds) if self.seconds >= 1 else f"{number(1000 * self.seconds)} ms"


def shares(run: Run, summary: Summary) -> list[Share]:
    """The wall time in parts that add up, then what the guard took of them; empty where no step was timed.

    A rolled-back attempt is one whose step a rollback discarded, the attempt that found the spike included.
    """
    seconds = np.nan_to_num(run.steps.step_seconds)
    if not seconds.sum() > 0:
        return []
    discarded = rolled_back(run)
    skipped = run.steps.skipped & ~discarded
    stands = ~discarded & ~skipped
    inside = float(seconds.sum())
    whole = max(summary.seconds or inside, inside)
    parts = [
        ("Steps that stand", float(seconds[stands].sum()), plural(int(stands.sum()), "attempt")),
        ("Rolled back", float(seconds[discarded].sum()), plural(int(discarded.sum()), "attempt")),
        ("Skipped", float(seconds[skipped].sum()), plural(int(skipped.sum()), "attempt")),
        ("Outside the steps", whole - inside, "start, evaluation, waiting for checkpoints"),
    ]
    found = [Share(name, part, part / whole, note) for name, part, note in parts if part > 0]
    return [*found, *_guard(run, inside)]


def rolled_back(run: Run) -> Flags:
    """Which attempts were discarded, each once, however many rollbacks discarded it."""
    discarded = np.zeros(len(run.steps), dtype=np.bool_)
    for first, last in run.rolled_back:
        discarded |= (run.steps.attempt >= first) & (run.steps.attempt <= last)
    return discarded


def typical_milliseconds(steps: Steps) -> str:
    """The medians of a step and of the guard's part in it."""
    guard, step = median_milliseconds(steps.guard_seconds), median_milliseconds(steps.step_seconds)
    if guard is None or step is None:
        return ""
    half = f"Half of all steps took less than {number(step)} ms"
    return f"{half}, and the guard in them less than {number(guard)} ms."


def _guard(run: Run, inside: float) -> list[Share]:
    watching = float(np.nan_to_num(run.steps.guard_seconds).sum())
    back = [incident.seconds or 0.0 for incident in run.incidents if incident.rolled_back]
    parts = [
        Share("Guard, of the steps", watching, watching / inside, "watching, clipping, deciding, snapshots"),
        Share("Rollbacks", sum(back), None, f"restoring the state in {plural(len(back), 'rollback')}"),
    ]
    return [part for part in parts if part.seconds > 0]


def median_milliseconds(seconds: Floats) -> float | None:
    """The median of what is known."""
    known = seconds[np.isfinite(seconds)]
    return 1000 * float(np.median(known)) if len(known) else None
