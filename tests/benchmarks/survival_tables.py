"""The results of the survival benchmark as tables: who survived what, and who named the cause."""

from __future__ import annotations

import statistics
from collections.abc import Iterable
from typing import Any

from markdown_tables import markdown

GUARD = "GradGuard"
BARE = "no guard"
TASKS = {"resnet": "ResNet", "gpt": "GPT"}
DETAIL = f"{GUARD} in detail"
"""The table of what our guard reported and did."""
NAMED = ("step", "kind", "rank", "layer")
"""What the first incident of a run should name, where there is a right answer."""
EACH_SEED = "faults survived on every seed"

StepParts = dict[str, Any]


def by_task(tables: dict[str, list[dict[str, Any]]]) -> dict[str, list[dict[str, Any]]]:
    """Every run's row, without what only our guard reports."""
    return {task: tables[task] for task in TASKS if task in tables}


def survival(parts: StepParts) -> str:
    """How every method did over all faults, and on each fault."""
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
    if DETAIL not in tables:
        return text
    summary, detail = witness_summary(tables[DETAIL]), markdown(tables[DETAIL])
    return text + f"\nHow often the first incident was right\n\n{summary}\nWhat {GUARD} reported\n\n{detail}"


def survival_summary(parts: StepParts) -> str:
    """The README's table: every method over all faults, and where ours did not reach its goals."""
    rows = [row for table in by_task(parts["survival"]["tables"]).values() for row in table]
    methods = [{name: value for name, value in row.items() if name != EACH_SEED} for row in _methods(rows)]
    return markdown(methods) + "\n" + _weak(rows)


def witness_summary(rows: list[dict[str, Any]]) -> str:
    """How often the first incident was right, and what a rollback cost at most, in one row."""
    clean = [row for row in rows if row["case"] == "clean"]
    runs = sum(row["seeds"] for row in clean)
    alarms = sum(row["incidents"] * row["seeds"] for row in clean)
    return markdown(
        [
            {
                **{what: _sum(row[f"{what} named"] for row in rows) for what in NAMED},
                "incidents on clean runs": f"{alarms:.0f} in {runs}",
                "steps repeated by one rollback": f"at most {max(r['most steps repeated'] for r in rows)}",
            }
        ]
    )


def _sum(entries: Iterable[str]) -> str:
    """Of entries like 1/2; those that are empty had no right answer."""
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
        EACH_SEED: f"{sum(r['survived'] == r['seeds'] for r in rows)} of {len(rows)}",
        "steps lost a run": sum(row["steps lost"] * row["seeds"] for row in rows) / runs,
        "time of a step": statistics.median(
            row["ms a step"] / bare.get((row["task"], row["case"]), row["ms a step"]) for row in rows
        ),
    }


def _by_case(table: list[dict[str, Any]]) -> list[dict[str, Any]]:
    cases: dict[str, dict[str, Any]] = {}
    for row in table:
        cases.setdefault(row["case"], {"fault": row["case"]})[row["method"]] = _result(row)
    return list(cases.values())


def _missed(rows: list[dict[str, Any]]) -> str:
    """Faults that our guard did not survive on every seed, and those where another method ended better."""
    lines = [
        f"- {TASKS[ours['task']]}, {ours['case']}: {GUARD} {_result(ours)}; "
        + (", ".join(f"{row['method']} {_result(row)}" for row in better) or "no other is better")
        for ours, better in _compared(rows)
    ]
    if not lines:
        return f"No other method survives a fault more often than {GUARD}, or ends more than 1 % better.\n"
    head = f"Where {GUARD} loses runs, or another method ends more than 1 % better (runs survived, loss):"
    return f"{head}\n\n" + "\n".join(lines) + "\n"


def _weak(rows: list[dict[str, Any]]) -> str:
    """The same in two lines: which faults cost our guard runs, and where another method ended better."""
    compared = _compared(rows)
    lost = _by_fault(
        (o, f" {o['survived']} of {o['seeds']}") for o, _ in compared if o["survived"] < o["seeds"]
    )
    better = _by_fault((ours, "") for ours, better in compared if better)
    return f"- {GUARD} loses runs to: {lost}.\n- Another method ends more than 1 % better on: {better}.\n"


def _by_fault(rows: Iterable[tuple[dict[str, Any], str]]) -> str:
    """``fault (ResNet, GPT)`` for each."""
    tasks: dict[str, list[str]] = {}
    for row, result in rows:
        tasks.setdefault(row["case"], []).append(TASKS[row["task"]] + result)
    return "; ".join(f"{case} ({', '.join(names)})" for case, names in tasks.items()) or "none"


def _compared(rows: list[dict[str, Any]]) -> list[tuple[dict[str, Any], list[dict[str, Any]]]]:
    """Our guard's row of each fault that it lost runs to or did worse on, with the rows of better methods."""
    by_key: dict[tuple[str, str], list[dict[str, Any]]] = {}
    for row in rows:
        by_key.setdefault((row["task"], row["case"]), []).append(row)
    pairs = []
    for (_, case), found in by_key.items():
        ours = next((row for row in found if row["method"] == GUARD), None)
        if ours is not None and case != "clean":
            better = [row for row in found if _better(row, ours)]
            if ours["survived"] < ours["seeds"] or better:
                pairs.append((ours, better))
    return pairs


def _result(row: dict[str, Any]) -> str:
    ratio = "lost" if row["loss / clean"] is None else f"{row['loss / clean']:.2f}"
    return f"{row['survived']} of {row['seeds']}, {ratio}"


def _better(row: dict[str, Any], ours: dict[str, Any]) -> bool:
    if row["method"] == GUARD or row["loss / clean"] is None or row["survived"] < ours["survived"]:
        return False
    worse = ours["loss / clean"] is None or row["survived"] > ours["survived"]
    return bool(worse or row["loss / clean"] < ours["loss / clean"] - 0.01)
