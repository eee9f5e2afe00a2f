"""What would the detector have done on this log?"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from guard.config import DetectConfig
from guard.decide.detector import SpikeDetector
from guard.decide.outliers import Outliers
from guard.logs.log import Row
from guard.logs.trace import TraceReader
from guard.records import Verdict
from guard.rows import strict

ALARMS = frozenset({"spike", "nonfinite"})
"""The verdicts on which the guard rolls back, or skips in any case."""


@dataclass(slots=True)
class ReplayResult:
    """The detector's verdicts. The lists hold ``step, verdict, signal, score, baseline``."""

    rows: int = 0
    kind: str = ""
    """What the log was recognized as: ``nanoGPT log``."""
    columns: dict[str, str | None] = field(default_factory=dict)
    """The columns that were read as ``step``, ``loss`` and ``grad_norm``; None where there is none."""
    steps_back: int = 0
    """How often the step went back: the run was resumed, or the log counts each epoch from 0."""
    suspects: int = 0
    alarms: list[dict[str, Any]] = field(default_factory=list)
    """Spikes and non-finite values: each would have cost a rollback or a skip."""
    trends: list[dict[str, Any]] = field(default_factory=list)
    """Drift and vanishing gradients, which the guard reports; it applies the step."""
    skipped_first: list[float] = field(default_factory=list)
    """Steps of the spikes that the guard would have skipped, as long as the weights are healthy."""
    alarm_factor: float | None = None
    """How many times its last level the loss must reach for an alarm; None where that is unknown."""

    def add(self, step: float, verdict: Verdict, *, outlier: bool = False) -> None:
        """One row; ``outlier``: it would have been skipped first."""
        self.rows += 1
        self.suspects += verdict.kind == "suspect"
        if verdict.kind in ("ok", "suspect"):
            return
        entry: dict[str, Any] = {
            "step": int(step) if step.is_integer() else step,
            "verdict": verdict.kind,
            "signal": verdict.signal,
            "score": verdict.score,
            "baseline": verdict.baseline,
        }
        if outlier:
            self.skipped_first.append(entry["step"])
        (self.alarms if verdict.kind in ALARMS else self.trends).append(entry)

    def to_dict(self) -> dict[str, Any]:
        """Strict JSON: an infinite score is the string ``inf``."""
        document: dict[str, Any] = strict(asdict(self))
        return document


def replay(
    path: str | Path,
    config: DetectConfig | None = None,
    *,
    step: str | None = None,
    loss: str | None = None,
    grad_norm: str | None = None,
    regex: str | None = None,
) -> ReplayResult:
    """Shows every row of a log to a fresh detector.

    Args:
        path: of the log, in any format of ``guard.logs``; ``-``: standard input.
        config: the detector's thresholds.
        step: name of the column with the step; None for the usual names. Without such a column rows are
            counted from 0.
        loss: name of the column with the loss.
        grad_norm: name of the column with the gradient norm; without it the loss is judged alone.
        regex: reads each line, with groups named ``step``, ``loss``, ``grad_norm``.

    Raises:
        TraceError: a row is malformed, or there is no such column.
        OSError: the file cannot be opened.
    """
    trace = TraceReader(path, step=step, loss=loss, grad_norm=grad_norm, regex=regex)
    result = replay_rows(trace, config)
    result.kind, result.columns = trace.kind, trace.columns
    return result


def replay_rows(rows: Iterable[Row], config: DetectConfig | None = None) -> ReplayResult:
    """Shows rows to a fresh detector; ``kind`` and ``columns`` of the result stay empty."""
    detector, result = SpikeDetector(config), ReplayResult()
    outliers = Outliers(detector.config.sigmas)
    last = -math.inf
    for row in rows:
        result.steps_back += row.step < last
        last = row.step
        verdict = detector.observe(row.loss, row.grad_norm)
        instead = None
        if verdict.kind != "ok":
            usual = row.loss is not None and detector.had_before(row.loss)
            instead = outliers.instead(verdict, result.rows, usual=usual, moved_far=lambda: False)
        result.add(row.step, verdict, outlier=instead is not None)
    result.alarm_factor = detector.alarm_factor()
    return result
