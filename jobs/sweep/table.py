"""What became of each trial of a sweep: one row a trial, the best first; also sweep.json."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from guard.rows import Row
from jobs.report.summary import figures_of_rows
from jobs.run_dir.reader import RunReader

SWEEP = "sweep.json"
PRUNED = "pruned"


@dataclass(frozen=True, slots=True, kw_only=True)
class Trial(Row):
    """One trial. ``status`` is the job's, ``pruned`` where the sweep ended it, ``waiting`` where it has not
    started."""

    number: int = 0
    folder: str = ""
    parameters: dict[str, str] = field(default_factory=dict)
    status: str = "waiting"
    value: float | None = None
    """Of the metric, in the last evaluation."""
    evaluations: int = 0
    steps: int | None = None
    incidents: int | None = None
    skips: int | None = None
    rollbacks: int | None = None
    error: str = ""


def trial_of(
    number: int, folder: Path, parameters: Mapping[str, Any], last: Mapping[str, Any], *, pruned: bool
) -> Trial:
    """One row, from the last result of the trial and the files of its job."""
    reader = RunReader(folder)
    result = reader.result() or {}
    figures = {**figures_of_rows(folder), **result} if reader.exists() else {}
    value, error = last.get("value"), str(last.get("error") or result.get("error") or "")
    known = value is not None and math.isfinite(value)
    status = str(result.get("status") or ("failed" if error else "stopped"))
    if not reader.exists() and not error:
        status = "waiting"
    return Trial(
        number=number,
        folder=str(folder),
        parameters={name: str(choice) for name, choice in parameters.items()},
        status=PRUNED if pruned and status != "failed" else status,
        value=value if known else None,
        evaluations=int(last.get("evaluations") or 0),
        error=error,
        **{name: figures.get(name) for name in ("steps", "incidents", "skips", "rollbacks")},
    )


def ranked(trials: Sequence[Trial], *, maximize: bool) -> list[Trial]:
    """The best first; those without a value last."""
    sign = -1.0 if maximize else 1.0

    def order(trial: Trial) -> tuple[bool, float, int]:
        return trial.value is None, sign * (trial.value or 0.0), trial.number

    return sorted(trials, key=order)
