"""From outcomes to a table: which methods survive, how close to the clean run, and at what cost."""

from __future__ import annotations

import math
import statistics
from collections import defaultdict
from collections.abc import Mapping
from typing import Any

from survival_tables import NAMED

from survival.cases import Case
from survival.rivals import GUARD

SURVIVED = 1.1
"""Held-out loss at most this much of the clean run's, of the same method and seed."""
WITHIN = 1.01


COMMON = (
    *("task", "case", "method", "seeds", "survived", "within 1 %", "to the bit", "loss / clean"),
    *("steps lost", "ms a step"),
)
"""Columns that every method has."""


def judge(
    results: Mapping[tuple[str, str, str, int], dict[str, Any]], known: Mapping[str, list[Case]]
) -> list[dict[str, Any]]:
    """One row for each task, case and method, over seeds."""
    grouped: dict[tuple[str, str, str], list[dict[str, Any]]] = defaultdict(list)
    for (task, name, method, seed), outcome in results.items():
        clean = results[task, "clean", method, seed]
        case = next(case for case in known[task] if case.name == name)
        grouped[task, name, method].append(_row(case, outcome, clean))
    return [_over_seeds(key, rows) for key, rows in grouped.items()]


def _row(case: Case, outcome: dict[str, Any], clean: dict[str, Any]) -> dict[str, Any]:
    ratio = outcome["score"] / clean["score"]
    named = _named(case, outcome["incidents"]) if case.faults else {}
    return {
        "survived": math.isfinite(ratio) and ratio <= SURVIVED and not outcome["halted"],
        "ratio": ratio,
        "near": math.isfinite(ratio) and ratio <= WITHIN,
        "same": outcome["digest"] == clean["digest"],
        "lost": outcome["lost"],
        "ms": 1e3 * outcome["seconds"] / outcome["attempts"],
        "repeated": _repeated(case, outcome["incidents"]),
        "incidents": len(outcome["incidents"]),
        "halted": outcome["halted"],
        **named,
    }


def _repeated(case: Case, incidents: list[dict[str, Any]]) -> int:
    """The most healthy steps that one rollback made the run take again."""
    fault = math.inf if case.first_step is None else case.first_step
    rolled_back = [i for i in incidents if i["rolled_back_to"] is not None]
    return max((int(max(0, min(i["step"], fault) - i["rolled_back_to"])) for i in rolled_back), default=0)


def _named(case: Case, incidents: list[dict[str, Any]]) -> dict[str, bool]:
    """Whether the first incident names the step, the kind, and the ranks and layers that were hit."""
    if not incidents:
        return {"step": False, "kind": False, "rank": False, "layer": False}
    first = incidents[0]
    found = {"step": abs(int(first["attempt"]) - 1 - int(case.first_step or 0)) <= 1}
    if case.shows is not None:
        finite = first["verdict"] != "nonfinite"
        found["kind"] = (
            first["signal"] in case.shows.signals
            and case.shows.finite in (None, finite)
            and case.shows.hardware == bool(first["faulty_ranks"])
        )
    if case.rank is not None:
        named = [entry.get("rank") for entry in first["ranks"][:1]] + list(first["faulty_ranks"])
        found["rank"] = case.rank in named
    if case.layer is not None:
        found["layer"] = case.layer in [entry["name"] for entry in first["layers"][:1] + first["moved"][:1]]
    return found


def _over_seeds(key: tuple[str, str, str], rows: list[dict[str, Any]]) -> dict[str, Any]:
    task, name, method = key
    finite = [row["ratio"] for row in rows if math.isfinite(row["ratio"])]
    summary: dict[str, Any] = {
        "task": task,
        "case": name,
        "method": method,
        "seeds": len(rows),
        "survived": sum(row["survived"] for row in rows),
        "within 1 %": sum(row["near"] for row in rows),
        "to the bit": sum(row["same"] for row in rows),
        "loss / clean": sum(finite) / len(finite) if len(finite) == len(rows) else None,
        "steps lost": sum(row["lost"] for row in rows) / len(rows),
        "ms a step": statistics.median(row["ms"] for row in rows),
    }
    if method == GUARD:
        summary["incidents"] = sum(row["incidents"] for row in rows) / len(rows)
        summary["halted"] = sum(row["halted"] for row in rows)
        summary["most steps repeated"] = max(row["repeated"] for row in rows)
        for what in NAMED:
            known = [row[what] for row in rows if what in row]
            summary[f"{what} named"] = f"{sum(known)}/{len(known)}" if known else ""
    return summary
