"""One step as a row of metrics.jsonl and, where the guard did something, as a line for people."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any

from guard import Incident, StepReport


def step_row(report: StepReport, step_seconds: float, layers: dict[str, float] | None) -> dict[str, Any]:
    """The row of one step attempt; ``layers`` only on some rows."""
    row: dict[str, Any] = {
        "time": time.time(),
        "attempt": report.attempt,
        "step": report.step,
        "action": report.action,
        "loss": report.loss,
        "grad_norm": report.grad_norm,
        "clip_coef": report.clip_coef,
        "clip_threshold": report.clip_threshold,
        "verdict": report.verdict.kind,
        "signal": report.verdict.signal,
        "score": report.verdict.score,
        "lr": report.learning_rate,
        "step_seconds": step_seconds,
        "guard_seconds": report.guard_seconds,
        "rolled_back_to": report.rolled_back_to,
        "local_norms": report.local_norms,
        "regularization": report.recovery,
    }
    if report.excluded_ranks:
        row["excluded_ranks"] = report.excluded_ranks
    return row if layers is None else {**row, "layers": layers}


def where(ranks: Sequence[int], places: Sequence[str]) -> str:
    """``rank 1 (node 3f2a, cpu)``, for each; rank -1 is unknown."""
    named = [f"rank {r} ({places[r]})" if 0 <= r < len(places) else f"rank {r}" for r in ranks if r >= 0]
    return ", ".join(named) or "a rank that cannot be told"


def describe(report: StepReport, places: Sequence[str] = ()) -> tuple[str, str]:
    """Level and text of the event of a step that was not just applied; ``places`` are those of the ranks."""
    incident = report.incident
    if incident is None:
        return "info", f"step {report.step}: the loss scaler met an overflow and lowers its scale"
    seen = f"{incident.signal} {incident.value:.4g}"
    if incident.baseline is not None:
        seen += f" (usually {incident.baseline:.4g})"
    text = f"step {incident.step}: {incident.verdict}, {seen}"
    if incident.dropped_micro_batches:
        return "warning", f"step {incident.step}: {incident.reason}"
    if incident.faulty_ranks or incident.excluded_ranks:
        return _put_right(text, incident, places)
    if incident.verdict == "vanishing":
        text += f"; {incident.reason}"
    if len(incident.ranks) > 1 and incident.ranks[0]["nonfinite"]:
        text += f", from rank {incident.ranks[0]['rank']}"
    if incident.action == "rolled_back":
        return "error", f"{text}: rewound {incident.steps_lost} steps to step {incident.rolled_back_to}"
    if incident.action == "skipped":
        return "warning", f"{text}: batch skipped"
    if incident.action == "halted":
        return "error", f"{text}: halted, {incident.reason}"
    return "warning", text if incident.would is None else f"{text}: would {incident.would}"


def _put_right(text: str, incident: Incident, places: Sequence[str]) -> tuple[str, str]:
    if incident.faulty_ranks:
        return "error", f"{text}: hardware fault on {where(incident.faulty_ranks, places)}; computed again"
    return (
        "warning",
        f"{text}: goes on without {where(incident.excluded_ranks, places)}, whose data stays bad",
    )
