"""Tables of the survival benchmark: which method survives which fault, what GradGuard's incidents name."""

from __future__ import annotations

import statistics
from collections.abc import Iterable
from typing import Any

from markdown_tables import markdown

GUARD = "GradGuard"
BARE = "no guard"
TASKS = {"resnet": "ResNet", "gpt": "GPT"}
DETAIL = f"{GUARD} in detail"
"""Title of the table of GradGuard's incidents and actions."""
NAMED = ("step", "kind", "rank", "layer")
"""What the first incident of a run should name, if there is a right answer."""

StepParts = dict[str, Any]


def by_task(tables: dict[str, list[dict[str, Any]]]) -> dict[str, list[dict[str, Any]]]:
    """Every run's row, without the columns of GradGuard alone."""
    return {task: tables[task] for task in TASKS if task in tables}


def survival(parts: StepParts) -> str:
    """Every method over all faults, then every fault."""
    tables = parts["survival"]["tables"]
    tasks = by_task(tables)
    rows = [row for table in tasks.values() for row in table]
    text = markdown(_methods(rows)) + "\n"
    for task, table in tasks.items():
        text += (
            f"{TASKS[task]}: runs survived of {table[0]['seeds']}, held-out loss against the clean run's\n\n"
        )
        text += markdown(_by_case(table)) + "\n"
    text += _missed(rows)
    return text + f"\n{DETAIL}\n\n{markdown(tables[DETAIL])}" if DETAIL in tables else text


def survival_summary(parts: StepParts) -> str:
    """Every method over all faults, and where GradGuard misses its goals."""
    rows = [row for table in by_task(parts["survival"]["tables"]).values() for row in table]
    return markdown(_methods(rows)) + "\n" + _missed(rows)


def witness_summary(parts: StepParts) -> str:
    """How often the first incident was right, and the largest cost of a rollback."""
    rows = parts["survival"]["tables"][DETAIL]
    clean = [row for row in rows if row["case"] == "clean"]
    measured = {
        f"{what} named by the first incident": _sum(row[f"{what} named"] for row in rows) for what in NAMED
    }
    runs = sum(row["seeds"] for row in clean)
    measured["incidents on clean runs"] = (
        f"{sum(row['incidents'] * row['seeds'] for row in clean):.0f} in {runs}"
    )
    measured["healthy steps repeated by one rollback, at most"] = str(
        max(r["most steps repeated"] for r in rows)
    )
    return markdown([{"measure": measure, "result": result} for measure, result in measured.items()])


def _sum(entries: Iterable[str]) -> str:
    """The sum of entries like 1/2; empty ones had no right answer."""
    pairs = [entry.split("/") for entry in entries if entry]
    return f"{sum(int(right) for right, _ in pairs)} of {sum(int(all_) for _, all_ in pairs)}"


def _methods(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    faults = [row for row in rows if row["case"] != "clean"]
    methods = list(dict.fromkeys(row["method"] for row in rows))
    bare = {(row["task"], row["case"]): row["ms a step"] for row in rows if row["method"] == BARE}
    return [_over_cases(m, [row for row in faults if row["method"] == m], bare) for m in methods]


def _over_cases(
    method: str, rows: list[dict[str, Any]], bare: dict[tuple[str, str], float]
) -> dict[str, Any]:
    runs = sum(row["seeds"] for row in rows)
    return {
        "method": f"**{method}**" if method == GUARD else method,
        "survived": f"{sum(row['survived'] for row in rows)} of {runs}",
        "within 1 % of clean": f"{sum(row['within 1 %'] for row in rows)} of {runs}",
        "faults survived on every seed": f"{sum(r['survived'] == r['seeds'] for r in rows)} of {len(rows)}",
        "steps lost a run": sum(row["steps lost"] * row["seeds"] for row in rows) / runs,
        "time of a step": statistics.median(
            row["ms a step"] / bare.get((row["task"], row["case"]), row["ms a step"]) for row in rows
        ),
    }


def _by_case(table: list[dict[str, Any]]) -> list[dict[str, Any]]:
    cases: dict[str, dict[str, Any]] = {}
    for row in table:
        cases.setdefault(row["case"], {"fault": row["case"]})[row["method"]] = _outcome(row)
    return list(cases.values())


def _missed(rows: list[dict[str, Any]]) -> str:
    """Faults that GradGuard did not survive on every seed, and those where another method is better."""
    by_key: dict[tuple[str, str], list[dict[str, Any]]] = {}
    for row in rows:
        by_key.setdefault((row["task"], row["case"]), []).append(row)
    lines = []
    for (task, case), found in by_key.items():
        ours = next((row for row in found if row["method"] == GUARD), None)
        if ours is None or case == "clean":
            continue
        better = [row for row in found if _better(row, ours)]
        if ours["survived"] < ours["seeds"] or better:
            named = ", ".join(f"{row['method']} {_outcome(row)}" for row in better) or "no other is better"
            lines.append(f"- {TASKS[task]}, {case}: {GUARD} {_outcome(ours)}; {named}")
    if not lines:
        return f"No other method survives a fault more often than {GUARD}, or ends more than 1 % better.\n"
    head = f"Where {GUARD} loses runs, or another method ends more than 1 % better (runs survived, loss):"
    return f"{head}\n\n" + "\n".join(lines) + "\n"


def _outcome(row: dict[str, Any]) -> str:
    ratio = "lost" if row["loss / clean"] is None else f"{row['loss / clean']:.2f}"
    return f"{row['survived']} of {row['seeds']}, {ratio}"


def _better(row: dict[str, Any], ours: dict[str, Any]) -> bool:
    if row["method"] == GUARD or row["loss / clean"] is None or row["survived"] < ours["survived"]:
        return False
    worse = ours["loss / clean"] is None or row["survived"] > ours["survived"]
    return bool(worse or row["loss / clean"] < ours["loss / clean"] - 0.01)
